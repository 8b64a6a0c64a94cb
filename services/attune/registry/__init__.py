"""Policies, verdicts and the rollout log: files that are written once and never changed.

    policies/<id>/                      claim.json, adapter_model.safetensors, adapter_config.json, manifest.json
                                        (written last), verdict.json
    rollouts/<tenant>/<persona>/<n>.json

All of it lies below the one folder that Registry and RolloutLog are given.
"""
