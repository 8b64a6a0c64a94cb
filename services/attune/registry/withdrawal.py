"""Deleting policies that have to go."""

import logging
from collections.abc import Mapping

from attune.errors import AttuneError
from attune.registry.policies import PolicyManifest, Registry
from attune.registry.rollouts import RolloutLog

logger = logging.getLogger(__name__)


def withdraw_idle(registry: Registry, rollouts: RolloutLog, tainted: Mapping[str, PolicyManifest]) -> list[str]:
    """Those that have no traffic; the others when they have none any more. Says which went."""
    gone = []
    for policy_id, manifest in tainted.items():
        try:
            current = rollouts.current(manifest.tenant, manifest.persona)
            if current is None or policy_id not in dict(current.shares):
                registry.withdraw(policy_id)
                gone.append(policy_id)
                logger.info("policy withdrawn", extra={"policy_id": policy_id})
        except AttuneError as error:
            logger.error("policy not withdrawn", extra={"policy_id": policy_id, "reason": error.message})
    return gone
