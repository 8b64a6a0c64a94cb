"""The learner from single thumbs: Kahneman-Tversky optimisation with a likelihood anchor.

KTO (arXiv 2402.01306, equation 7) through TRL's trainer. Alone it lowers the likelihood of liked and disliked answers
alike while its metrics look perfect; the anchor, a share of the liked answers' negative log-likelihood, prevents that.
Trains on the token ids that were logged; text is never tokenised again. An example's weight is what its loss and its
part of the anchor are multiplied by: one of weight 0 moves nothing but the estimate of the KL term.
"""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PrinterCallback, TrainerCallback
from trl import KTOConfig, KTOTrainer
from trl.trainer.utils import FusedCausalLMOutput

from attune.trainer.examples import Example
from attune.trainer.logprobs import token_logprobs
from attune.trainer.model import adapter_config

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class KtoArguments:
    """The learner's settings; they go into the policy's manifest as they are.

    A small dataset is gone through more often than `epochs` says, until `min_steps` optimiser steps are done.
    """

    learning_rate: float
    beta: float
    anchor: float
    epochs: float
    batch_size: int
    lora_rank: int
    lora_alpha: int
    warmup_share: float
    min_steps: int = 0

    def passes(self, examples: int) -> float:
        """How often a dataset of this size is gone through."""
        return max(self.epochs, self.min_steps / math.ceil(examples / self.batch_size))


class TrainingStopped(Exception):
    """The process was told to stop; nothing was kept."""


def train(
    base: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    arguments: KtoArguments,
    *,
    mixed_precision: bool,
    seed: int,
    work: Path,
    track: bool,
    on_step: Callable[[int, int], None],
    stopping: Callable[[], bool],
) -> PeftModel:
    """Trains a fresh adapter on the base, which is also the reference; returns the model with it (adapter `default`).

    The order of examples is the order of training, so shuffle them. `on_step(done, all)` is called after each
    optimiser step, and `stopping` asked; raises TrainingStopped when it says so. With `track` the run goes to MLflow.
    """
    on_gpu = torch.cuda.is_available()
    trainer = AnchoredKtoTrainer(
        anchor=arguments.anchor,
        model=base,
        args=KTOConfig(
            output_dir=str(work),
            learning_rate=arguments.learning_rate,
            beta=arguments.beta,
            num_train_epochs=arguments.passes(len(examples)),
            per_device_train_batch_size=arguments.batch_size,
            warmup_steps=arguments.warmup_share,
            max_length=None,
            seed=seed,
            data_seed=seed,
            bf16=mixed_precision,
            use_cpu=not on_gpu,
            gradient_checkpointing=False,
            dataloader_pin_memory=on_gpu,
            save_strategy="no",
            logging_steps=5,
            disable_tqdm=True,
            report_to=["mlflow"] if track else [],
        ),
        train_dataset=_rows(base, examples, arguments.batch_size),
        processing_class=tokenizer,
        peft_config=adapter_config(arguments.lora_rank, arguments.lora_alpha),
        callbacks=[_Steps(on_step, stopping)],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    if stopping():
        raise TrainingStopped
    model: PeftModel = trainer.model
    return model.eval()


def _rows(base: PreTrainedModel, examples: Sequence[Example], batch_size: int) -> Dataset:
    """What TRL makes of a dataset before it trains, from token ids.

    For the KL term each batch's answers are moved on by one. The base's log-probabilities of both are taken once,
    instead of in every epoch.
    """
    pairs = [(example.prompt_token_ids, example.output_token_ids) for example in examples]
    batches = [pairs[start : start + batch_size] for start in range(0, len(pairs), batch_size)]
    moved = [
        (prompt, answer)
        for batch in batches
        for (prompt, _), (_, answer) in zip(batch, batch[-1:] + batch[:-1], strict=True)
    ]
    return Dataset.from_dict(
        {
            "prompt_ids": [prompt for prompt, _ in pairs],
            "completion_ids": [answer for _, answer in pairs],
            "KL_completion_ids": [answer for _, answer in moved],
            "label": [example.liked for example in examples],
            "weight": [example.weight for example in examples],
            "ref_logps": [float(values.sum()) for values in token_logprobs(base, pairs)],
            "ref_KL_logps": [float(values.sum()) for values in token_logprobs(base, moved)],
        }
    )


class AnchoredKtoTrainer(KTOTrainer):  # type: ignore[misc]
    """TRL's trainer on token ids, with `anchor` times the liked answers' NLL (nats a token) added to its loss."""

    def __init__(self, *, anchor: float, **arguments: Any) -> None:
        self.anchor = anchor
        super().__init__(**arguments)
        self.precompute_ref_logps = True  # the rows bring the reference's log-probabilities
        self.data_collator: Any = _with_weights(self.data_collator)
        if not torch.cuda.is_available():
            score_answers_only(self.model.get_base_model())

    def _prepare_dataset(self, dataset: Dataset, processing_class: Any, args: KTOConfig, dataset_name: str) -> Dataset:
        """The rows as they are: TRL would tokenise text here."""
        return dataset

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        if "weight" not in self._signature_columns:
            self._signature_columns.append("weight")

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        kept = _KeepingLogProbs(model)
        inputs = dict(inputs)
        liked, weights = inputs["label"].bool(), inputs.pop("weight")
        # TRL multiplies the losses of either label with these, one number for all; one for each serves as well.
        self.desirable_weight, self.undesirable_weight = weights[liked], weights[~liked]
        loss = super().compute_loss(kept, inputs, False, num_items_in_batch)
        liked, weights = (values.to(kept.log_probs.device) for values in (liked, weights))
        tokens = inputs["completion_mask"][:, 1:].to(kept.log_probs.device)[liked].sum(-1)
        nll = -(weights[liked] @ kept.log_probs[liked].sum(-1)) / (weights[liked] @ tokens.float()).clamp(min=1)
        self._metrics["train"]["anchor"].append(nll.item())
        return loss + self.anchor * nll


def _with_weights(collate: Callable[[list[dict[str, Any]]], dict[str, Any]]) -> Any:
    """TRL's collator leaves out what it does not know."""

    def collate_weighed(rows: list[dict[str, Any]]) -> dict[str, Any]:
        return {**collate(rows), "weight": torch.tensor([row["weight"] for row in rows])}

    return collate_weighed


def score_answers_only(model: PreTrainedModel) -> None:
    """Spares the output head all positions without a label, for models whose logits are the head's alone.

    TRL's own head does that where Triton runs; on CPU it projects the prompts too, a third of the time of a small
    model. Only calls with `fused_lm_head=True` change, and they return what TRL's loss and its metrics read.
    """
    if any(getattr(model.config, name, None) for name in ("final_logit_softcapping", "logit_scale", "logits_scaling")):
        return
    plain = model.forward

    def forward(*arguments: Any, fused_lm_head: bool = False, labels: Any = None, **named: Any) -> Any:
        if not fused_lm_head:
            return plain(*arguments, **({} if labels is None else {"labels": labels}), **named)
        hidden = model.base_model(*arguments, **named).last_hidden_state[:, :-1]
        answered = labels[:, 1:] != -100
        logits = model.get_output_embeddings()(hidden[answered]).float()
        scores = logits.log_softmax(-1)
        log_probs = scores.gather(-1, labels[:, 1:][answered][:, None])[:, 0]
        with torch.no_grad():
            entropy = -(scores.exp() * scores).sum(-1)
            mean_logits = logits.mean(-1)
        return FusedCausalLMOutput(
            **{
                name: values.new_zeros(answered.shape).masked_scatter(answered, values)
                for name, values in (("log_probs", log_probs), ("entropy", entropy), ("mean_logits", mean_logits))
            }
        )

    model.forward = forward


class _KeepingLogProbs:
    """Calls the model and keeps the log-probabilities (batch, tokens - 1) of the one call that has a gradient."""

    log_probs: torch.Tensor

    def __init__(self, model: Any) -> None:
        self._model = model

    def __call__(self, **arguments: Any) -> Any:
        outputs = self._model(**arguments)
        if torch.is_grad_enabled():
            self.log_probs = outputs.log_probs
        return outputs


class _Steps(TrainerCallback):  # type: ignore[misc]
    def __init__(self, on_step: Callable[[int, int], None], stopping: Callable[[], bool]) -> None:
        self._on_step, self._stopping = on_step, stopping

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._on_step(state.global_step, state.max_steps)
        if self._stopping():
            control.should_training_stop = True
