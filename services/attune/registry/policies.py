"""Policies at rest: claimed first, then filled, made whole by a signed manifest, judged by a signed verdict."""

import contextlib
import hashlib
import logging
import os
import shutil
import stat
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from attune import ids
from attune.errors import AlreadyExists, AttuneError, DataLoss, FailedPrecondition, InvalidInput, NotFound
from attune.files import (
    DRAFT_PREFIX,
    create_file,
    make_folder,
    names_in,
    open_regular,
    read_file,
    reported,
    sync,
)
from attune.keys import PolicySigner, PolicyVerifier
from attune.registry.fields import Fields, canonical_json
from attune.registry.verdict import Verdict

logger = logging.getLogger(__name__)

WEIGHTS = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_FILES = (WEIGHTS, ADAPTER_CONFIG)

MAX_MANIFEST_BYTES = 4 << 20
_MAX_VERDICT_BYTES = 1 << 20
_MAX_CONFIG_BYTES = 1 << 20
_COPY_BYTES = 1 << 20
_KNOWN_FILES = frozenset({"claim.json", "manifest.json", "verdict.json", *ADAPTER_FILES})

# What is signed begins with what it is, so that no signature of one kind holds for the other.
_MANIFEST_DOMAIN = b"attune policy manifest\n"
_VERDICT_DOMAIN = b"attune policy verdict\n"


@dataclass(frozen=True)
class Probe:
    """A short sequence by which an engine shows that it runs the trained weights and not others.

    Log-probabilities are natural, one for each output token, at temperature 1: the policy's, and the base model's.
    """

    prompt_token_ids: tuple[int, ...]
    output_token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    base_logprobs: tuple[float, ...]


@dataclass(frozen=True)
class PolicyManifest:
    """Where a policy comes from and what it consists of.

    `training`, `metrics` and `probe` are whatever the trainer wants known; `files` (name to SHA-256) and `signature`
    (Ed25519, hexadecimal) are filled in by `Registry.publish`. `parent_policy_id` is empty for a policy that was
    trained from the base.
    """

    policy_id: str
    tenant: str
    persona: str
    base_model_hash: str
    parent_policy_id: str
    dataset_ids: tuple[str, ...]
    created_unix_ms: int
    training: Mapping[str, Any]
    metrics: Mapping[str, float]
    probe: tuple[Probe, ...]
    files: Mapping[str, str] = field(default_factory=dict)
    signature: str = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, fields: Fields) -> "PolicyManifest":
        """Raises DataLoss for anything that to_json would not write. Fields that it does not know are left alone."""
        files = fields.object("files")
        metrics = fields.object("metrics")
        return cls(
            policy_id=fields.text("policy_id"),
            tenant=fields.text("tenant"),
            persona=fields.text("persona"),
            base_model_hash=fields.text("base_model_hash"),
            parent_policy_id=fields.text("parent_policy_id"),
            dataset_ids=fields.texts("dataset_ids"),
            created_unix_ms=fields.integer("created_unix_ms"),
            training=fields.object("training").values,
            metrics={name: metrics.number(name) for name in metrics.values},
            probe=tuple(
                Probe(
                    prompt_token_ids=probe.integers("prompt_token_ids"),
                    output_token_ids=probe.integers("output_token_ids"),
                    logprobs=probe.numbers("logprobs"),
                    base_logprobs=probe.numbers("base_logprobs"),
                )
                for probe in fields.objects("probe")
            ),
            files={name: files.text(name) for name in files.values},
            signature=fields.text("signature"),
        )


class Registry:
    """The policies below `<folder>/policies`, written by the trainer and read by everyone.

    Nothing read here is believed before its signature was checked with `verifier`. A policy without a manifest was
    claimed and is not finished: for readers it does not exist. Nothing is cached, and any number of processes may use
    one folder.
    """

    def __init__(self, folder: Path, verifier: PolicyVerifier) -> None:
        self._policies = folder / "policies"
        self._verifier = verifier

    def claim(self, tenant: str, persona: str) -> str:
        """Takes the next policy id for this persona; no other call, in any process, ever gets the same one."""
        claim = canonical_json(
            {"tenant": ids.check_name(tenant, "tenant"), "persona": ids.check_name(persona, "persona")}
        )
        make_folder(self._policies)
        number = max(map(ids.policy_number, self._folders()), default=0) + 1
        while True:
            policy_id = ids.policy_id(number)
            make_folder(self._policies / policy_id)
            try:
                create_file(self._policies / policy_id / "claim.json", claim)
            except FileExistsError:
                number += 1
                continue
            return policy_id

    def publish(self, manifest: PolicyManifest, adapter_folder: Path, signer: PolicySigner) -> PolicyManifest:
        """Copies the adapter's two files beside the claim and writes the signed manifest, last.

        Returns the manifest as written. May be called again after a crash, with other files too, until a manifest is
        there; from then on raises AlreadyExists. Raises FailedPrecondition when this persona did not claim the id.
        """
        folder = self._folder(manifest.policy_id)
        self._check_claim(manifest)
        if (folder / "manifest.json").exists():
            raise AlreadyExists(f"policy {manifest.policy_id} is published already", field="policy_id")
        for draft in folder.glob(f"{DRAFT_PREFIX}*"):
            draft.unlink()
        files = {name: _copy(adapter_folder / name, folder / name) for name in ADAPTER_FILES}
        _check_adapter(folder)
        unsigned = replace(manifest, files=files).to_json()
        del unsigned["signature"]
        signature = signer.sign(_MANIFEST_DOMAIN + canonical_json(unsigned)).hex()
        content = canonical_json({**unsigned, "signature": signature})
        if len(content) > MAX_MANIFEST_BYTES:
            raise InvalidInput(f"the manifest has {len(content)} bytes; at most {MAX_MANIFEST_BYTES} are taken")
        try:
            create_file(folder / "manifest.json", content)
        except FileExistsError:
            raise AlreadyExists(f"policy {manifest.policy_id} is published already", field="policy_id") from None
        return replace(manifest, files=files, signature=signature)

    def read(self, policy_id: str) -> PolicyManifest:
        """The manifest, once its signature is checked.

        Raises InvalidInput for what is no policy id, NotFound for a policy that is not there or not finished, and
        DataLoss for a damaged one.
        """
        return self._read(policy_id)[0]

    def list(self, tenant: str, persona: str) -> tuple[PolicyManifest, ...]:
        """A persona's finished policies, oldest first; damaged ones are left out and logged."""
        manifests = []
        for policy_id in self.ids():
            try:
                manifest = self.read(policy_id)
            except NotFound:
                continue
            except AttuneError as error:
                logger.warning("damaged policy", extra={"policy_id": policy_id, "reason": error.message})
                continue
            if (manifest.tenant, manifest.persona) == (tenant, persona):
                manifests.append(manifest)
        return tuple(manifests)

    def ids(self, after: int = 0) -> tuple[str, ...]:
        """Ids of all finished policies, of every persona, with a number above `after`, in order."""
        with reported(self._policies):
            return tuple(
                policy_id
                for policy_id in self._folders()
                if ids.policy_number(policy_id) > after and (self._policies / policy_id / "manifest.json").exists()
            )

    def withdraw(self, policy_id: str) -> None:
        """Deletes all of a policy but its claim: from then on there is none of this id, and there never will be."""
        folder = self._folder(policy_id)
        with reported(folder):
            # Without a manifest it does not exist; what is left of a crash behind that is deleted by the next call.
            for name in ("manifest.json", *sorted(set(os.listdir(folder)) - {"manifest.json", "claim.json"})):
                (folder / name).unlink(missing_ok=True)
            sync(folder)

    def write_verdict(self, verdict: Verdict, signer: PolicySigner) -> None:
        """Puts the verdict beside the finished policy, bound to its very manifest; raises AlreadyExists the second
        time."""
        _, manifest_sha256 = self._read(verdict.policy_id)
        unsigned = {**verdict.to_json(), "manifest_sha256": manifest_sha256}
        signature = signer.sign(_VERDICT_DOMAIN + canonical_json(unsigned)).hex()
        try:
            create_file(
                self._folder(verdict.policy_id) / "verdict.json", canonical_json({**unsigned, "signature": signature})
            )
        except FileExistsError:
            raise AlreadyExists(f"policy {verdict.policy_id} has its verdict already", field="policy_id") from None

    def read_verdict(self, policy_id: str) -> Verdict:
        """The verdict; raises NotFound until there is one, and DataLoss for one that is not this policy's."""
        _, manifest_sha256 = self._read(policy_id)
        where = f"{policy_id}/verdict.json"
        try:
            content = read_file(self._folder(policy_id) / "verdict.json", _MAX_VERDICT_BYTES)
        except FileNotFoundError:
            raise NotFound(f"policy {policy_id} has no verdict yet", field="policy_id") from None
        fields = Fields.parse(content, where)
        self._check_signature(fields, _VERDICT_DOMAIN, where)
        verdict = Verdict.from_json(fields)
        if verdict.policy_id != policy_id or fields.text("manifest_sha256") != manifest_sha256:
            raise DataLoss(f"{where} was written about another policy")
        return verdict

    def verify(self, policy_id: str, *, base_model_hash: str) -> PolicyManifest:
        """The manifest of a policy that may serve on this base model, every byte of it checked.

        Raises InvalidInput, NotFound and DataLoss as `check` does, and FailedPrecondition for a policy that was
        trained on another base model, that has no verdict, or that did not pass.
        """
        manifest = self.check(policy_id)
        if manifest.base_model_hash != base_model_hash:
            raise FailedPrecondition(
                f"policy {policy_id} was trained on base model {manifest.base_model_hash[:12]}; "
                f"this one is {base_model_hash[:12]}",
                field="policy_id",
            )
        try:
            verdict = self.read_verdict(policy_id)
        except NotFound as error:
            raise FailedPrecondition(error.message, field="policy_id") from None
        if not verdict.passed:
            raise FailedPrecondition(f"policy {policy_id} did not pass the gate", field="policy_id")
        return manifest

    def check(self, policy_id: str) -> PolicyManifest:
        """The manifest, once signature, SHA-256 of every file, formats and names are checked, whatever the verdict.

        Raises DataLoss for a damaged policy, and for links or files in its folder that do not belong there.
        """
        manifest = self.read(policy_id)
        folder = self._folder(policy_id)
        _check_names(folder)
        if set(manifest.files) != set(ADAPTER_FILES):
            raise DataLoss(f"{policy_id}/manifest.json names other files than {' and '.join(ADAPTER_FILES)}")
        for name, sha256 in manifest.files.items():
            if _sha256(folder / name) != sha256:
                raise DataLoss(f"{policy_id}/{name} is damaged: its SHA-256 is not the manifest's")
        _check_adapter(folder)
        return manifest

    def copy_out(self, manifest: PolicyManifest, target: Path) -> None:
        """Copies a verified policy's adapter into the folder `target`, which must not exist yet: a PEFT folder.

        The bytes are compared with the manifest once more while they are copied; on DataLoss nothing is left.
        """
        make_folder(target.parent)
        with reported(target):
            target.mkdir()
        try:
            for name, sha256 in manifest.files.items():
                if _copy(self._folder(manifest.policy_id) / name, target / name) != sha256:
                    raise DataLoss(f"{manifest.policy_id}/{name} is damaged: its SHA-256 is not the manifest's")
        except BaseException:
            shutil.rmtree(target, ignore_errors=True)
            raise

    def _folders(self) -> tuple[str, ...]:
        """Ids with a folder, claimed or finished, in order. What has no id's name is none of ours."""
        found = []
        for name in names_in(self._policies):
            with contextlib.suppress(InvalidInput):
                if ids.policy_number(name) > 0:
                    found.append(name)
        return tuple(sorted(found, key=ids.policy_number))

    def _folder(self, policy_id: str) -> Path:
        if ids.policy_number(policy_id) == 0:
            raise NotFound("the base model is no policy of the registry", field="policy_id")
        folder = self._policies / policy_id
        try:
            with reported(folder):
                mode = folder.lstat().st_mode
        except FileNotFoundError:
            raise NotFound(f"no policy {policy_id}", field="policy_id") from None
        if not stat.S_ISDIR(mode):
            raise InvalidInput(f"policy {policy_id} is a link or a file; a policy is a folder", field="policy_id")
        return folder

    def _read(self, policy_id: str) -> tuple[PolicyManifest, str]:
        """The manifest and the SHA-256 of its bytes."""
        where = f"{policy_id}/manifest.json"
        try:
            content = read_file(self._folder(policy_id) / "manifest.json", MAX_MANIFEST_BYTES)
        except FileNotFoundError:
            raise NotFound(f"no policy {policy_id}", field="policy_id") from None
        fields = Fields.parse(content, where)
        self._check_signature(fields, _MANIFEST_DOMAIN, where)
        manifest = PolicyManifest.from_json(fields)
        if manifest.policy_id != policy_id:
            raise DataLoss(f"{where} is another policy's")
        return manifest, hashlib.sha256(content).hexdigest()

    def _check_signature(self, fields: Fields, domain: bytes, where: str) -> None:
        unsigned = {name: value for name, value in fields.values.items() if name != "signature"}
        try:
            signature = bytes.fromhex(fields.text("signature"))
            holds = self._verifier.holds(domain + canonical_json(unsigned), signature)
        except (ValueError, InvalidInput):
            holds = False
        if not holds:
            raise DataLoss(f"{where} is not signed by this installation's trainer")

    def _check_claim(self, manifest: PolicyManifest) -> None:
        try:
            claim = Fields.parse(read_file(self._folder(manifest.policy_id) / "claim.json", 4096), "claim.json")
        except FileNotFoundError:
            raise FailedPrecondition(f"policy {manifest.policy_id} is not claimed", field="policy_id") from None
        if (claim.text("tenant"), claim.text("persona")) != (manifest.tenant, manifest.persona):
            raise FailedPrecondition(f"policy {manifest.policy_id} is claimed for another persona", field="policy_id")


def _check_names(folder: Path) -> None:
    with os.scandir(folder) as entries:
        for entry in entries:
            if not entry.is_file(follow_symlinks=False):
                raise DataLoss(f"{folder.name} holds something that is no plain file")
            if entry.name not in _KNOWN_FILES and not entry.name.startswith(DRAFT_PREFIX):
                raise DataLoss(f"{folder.name} holds a file that belongs to no policy")


def _check_adapter(folder: Path) -> None:
    """Raises DataLoss unless the weights are well-formed safetensors and the configuration is a LoRA adapter's."""
    from safetensors import SafetensorError, safe_open

    where = f"{folder.name}/{ADAPTER_CONFIG}"
    config = Fields.parse(read_file(folder / ADAPTER_CONFIG, _MAX_CONFIG_BYTES), where)
    if config.text("peft_type") != "LORA" or config.integer("r") < 1:
        raise DataLoss(f"{where} does not describe a LoRA adapter")
    try:
        with reported(folder / WEIGHTS), safe_open(folder / WEIGHTS, framework="numpy") as weights:
            names = list(weights.keys())
    except SafetensorError:
        raise DataLoss(f"{folder.name}/{WEIGHTS} is not valid safetensors") from None
    if not names or not all(".lora_" in name for name in names):
        raise DataLoss(f"{folder.name}/{WEIGHTS} holds no LoRA weights, or others beside them")


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    try:
        with open_regular(file) as descriptor, reported(file):
            while block := os.read(descriptor, _COPY_BYTES):
                digest.update(block)
    except FileNotFoundError:
        raise DataLoss(f"{file.parent.name}/{file.name} is missing") from None
    return digest.hexdigest()


def _copy(source: Path, target: Path) -> str:
    """Copies durably, replacing what is there, and returns the SHA-256 of what was copied."""
    digest = hashlib.sha256()
    draft = target.with_name(f"{DRAFT_PREFIX}{target.name}")
    try:
        with open_regular(source) as descriptor, reported(target):
            with draft.open("wb") as stream:
                while block := os.read(descriptor, _COPY_BYTES):
                    digest.update(block)
                    stream.write(block)
                stream.flush()
                os.fsync(stream.fileno())
            draft.replace(target)
            sync(target.parent)
    except FileNotFoundError:
        raise DataLoss(f"{source.parent.name}/{source.name} is missing") from None
    return digest.hexdigest()
