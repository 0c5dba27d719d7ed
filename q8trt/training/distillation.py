"""Knowledge distillation: the logits, hidden states and attention of a teacher are targets in addition to the labels.

    loss = label_weight * label loss + logit_weight * logits + hidden_weight * hidden states + attention_weight * attention

The logit term follows Hinton et al., arXiv 1503.02531, section 2.1. The other two terms follow TinyBERT (Jiao et al., arXiv
1909.10351, equations 7 to 9), with two differences. First, TinyBERT fits attention scores before softmax. transformers returns
the probabilities after softmax and dropout, so the probabilities are fitted and attention dropout is off. Second, each term is a
mean over layers instead of a sum, so a weight has the same meaning for every depth. Neither term counts padding.

Student layer m learns from teacher layer round(m * teacher layers / student layers), where layer 0 is the output of the
embeddings. If the hidden sizes differ, W_e and W_h of equations 8 and 9 are trained with the student, but they are not part of
its final checkpoint. If the numbers of heads differ, attention is averaged over the heads on both sides.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from q8trt.models import takes_token_types
from q8trt.quantization.architectures import architecture_of
from q8trt.quantization.modules import ATTENTION
from q8trt.tasks.heads import HeadKind

#: Attribute of the student that holds W_e and W_h while it trains.
PROJECTION = "distillation_projection"
#: Attention implementations that return probabilities.
_SHOW_ATTENTION = ("eager", ATTENTION)


@dataclass(frozen=True)
class Distillation:
    """A teacher and the weights of the loss.

    Attributes:
        teacher: a floating-point model for the same labels and vocabulary.
        label_weight: weight of the label loss. With 0, rows need no labels.
        logit_weight: weight of the distance to the teacher's logits or embeddings.
        temperature: divisor of the logits of student and teacher (classification).
        hidden_weight: weight of the distance to the hidden states, including the embeddings; 0 does not compute it.
        attention_weight: weight of the distance to the attention probabilities; 0 does not compute it.
        token_types: whether the teacher's tokenizer makes token types.
    """

    teacher: nn.Module
    label_weight: float = 0.5
    logit_weight: float = 0.5
    temperature: float = 1.0
    hidden_weight: float = 0.0
    attention_weight: float = 0.0
    token_types: bool = True


def logit_distance(
    student: torch.Tensor, teacher: torch.Tensor, is_regression: bool, temperature: float
) -> torch.Tensor:
    """Return the distance of logits (batch, num_labels): mean squared error for regression, else KL divergence.

    The KL divergence of softmax(logits / temperature) is summed over labels, averaged over the batch, and multiplied by
    temperature^2, so that the temperature does not scale its gradient (Hinton et al., arXiv 1503.02531, section 2.1).
    """
    if is_regression:
        return nn.functional.mse_loss(student.float(), teacher.float())
    log_p = nn.functional.log_softmax(student.float() / temperature, dim=-1)
    log_q = nn.functional.log_softmax(teacher.float() / temperature, dim=-1)
    return nn.functional.kl_div(log_p, log_q, reduction="batchmean", log_target=True) * temperature**2


def label_by_label(*logits: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Return logits of sigmoids (batch, labels) as two-class logits of softmax, label or not, (batch * labels, 2)."""
    return tuple(torch.stack((each, torch.zeros_like(each)), dim=-1).flatten(0, 1) for each in logits)


def token_distance(
    student: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor, kind: HeadKind, temperature: float
) -> torch.Tensor:
    """Return the distance of the logits of tokens (B, S, outputs) where `mask` (B, S) is 1, see `logit_distance`.

    For token classification it is the mean over tokens. For question answering, it compares the distributions of the start and
    of the end over the tokens of a row.
    """
    if kind is HeadKind.TOKEN_CLASSIFICATION:
        return logit_distance(student[mask.bool()], teacher[mask.bool()], False, temperature)
    padding = (1 - mask).bool().unsqueeze(-1)
    ours, theirs = (
        each.float().masked_fill(padding, -1e4).transpose(1, 2).flatten(0, 1) for each in (student, teacher)
    )
    return logit_distance(ours, theirs, False, temperature)


def embedding_distance(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Return the distance of embeddings (batch, features), a sum of two terms.

    The first term is the mean of 1 - cosine(student, teacher). The second is the mean squared error of the matrix of cosines
    within the batch (Tung and Mori, "Similarity-Preserving Knowledge Distillation", arXiv 1907.09682, section 3.1).
    """
    ours, theirs = (nn.functional.normalize(each.float(), dim=-1) for each in (student, teacher))
    apart = 1 - (ours * theirs).sum(-1).mean()
    return apart + nn.functional.mse_loss(ours @ ours.T, theirs @ theirs.T)


def hidden_distance(student: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return the mean squared error of hidden states (B, S, H) over the tokens where `mask` (B, S) is 1."""
    squares = (student.float() - teacher.float()).square().mean(-1)
    return (squares * mask).sum() / mask.sum()


def attention_distance(student: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return the squared distance of attention probabilities (B, A, S, S) where `mask` (B, S) is 1 for query and key.

    The distance is summed over keys, so it is between 0 and 2 for any length of text, and averaged over heads and queries. If
    the numbers of heads A differ, both sides are first averaged over their heads.
    """
    student, teacher = student.float(), teacher.float()
    if student.shape[1] != teacher.shape[1]:
        student, teacher = student.mean(1, keepdim=True), teacher.mean(1, keepdim=True)
    squares = (student - teacher).square() * mask[:, None, None, :]
    return (squares.sum(-1) * mask[:, None, :]).sum() / (mask.sum() * student.shape[1])


def layer_map(student_layers: int, teacher_layers: int) -> list[int]:
    """Return the teacher's layer for each layer of the student, starting with layer 0, the embeddings.

    This is TinyBERT's g(m) = m * teacher_layers / student_layers, rounded to the nearest layer.
    """
    return [(2 * m * teacher_layers + student_layers) // (2 * student_layers) for m in range(student_layers + 1)]


def token_types(input_ids: torch.Tensor, mask: torch.Tensor, separator: int) -> torch.Tensor:
    """Return BERT's token types (B, S), for a teacher that reads them and a student whose tokenizer makes none.

    They are 1 after the first separator, and 0 before it and in the padding. `input_ids` and `mask` have the same shape.
    """
    after = (input_ids == separator).long().cumsum(1) - (input_ids == separator).long()
    return (after > 0).long() * mask


class Distiller:
    """The loss of a training step with a teacher, made by `distilling`.

    Args:
        student: the model that trains.
        distillation: the teacher and the weights.
        kind: kind of the model's head, which decides the distance of logits.
        separator: id of the token between two texts, for `token_types`.
    """

    def __init__(self, student: nn.Module, distillation: Distillation, kind: HeadKind, separator: int) -> None:
        self.student, self.distillation = student, distillation
        self.kind, self.separator = kind, separator
        ours: Any = student.config
        theirs: Any = distillation.teacher.config
        self.layers = layer_map(ours.num_hidden_layers, theirs.num_hidden_layers)
        self._reads_types = distillation.token_types and takes_token_types(theirs)

    @property
    def wanted(self) -> dict[str, bool]:
        """Keyword arguments of student and teacher that request the outputs that the loss needs besides logits."""
        wanted = {
            "output_hidden_states": self.distillation.hidden_weight > 0,
            "output_attentions": self.distillation.attention_weight > 0,
        }
        return {name: True for name, value in wanted.items() if value}

    def ask_teacher(self, inputs: Mapping[str, Any]) -> Any:
        """Return the teacher's outputs for the student's inputs, without gradients."""
        ids, mask, types = inputs["input_ids"], inputs["attention_mask"], inputs.get("token_type_ids")
        asked = {"input_ids": ids, "attention_mask": mask}
        if self._reads_types:
            asked["token_type_ids"] = token_types(ids, mask, self.separator) if types is None else types
        with torch.no_grad():
            return self.distillation.teacher(**asked, **self.wanted)

    def loss(self, outputs: Any, inputs: Mapping[str, Any], target: Any) -> torch.Tensor:
        """Return the weighted sum in the module's docstring, a scalar.

        Args:
            outputs: the student's outputs, with its label loss and the outputs that `wanted` requests.
            inputs: the student's inputs, of which ``attention_mask`` (B, S) is read.
            target: the result of `ask_teacher`.
        """
        weights, mask = self.distillation, inputs["attention_mask"]
        if self.kind is HeadKind.EMBEDDING:
            distance = embedding_distance(outputs.logits, target.logits)
        elif self.kind.per_token:
            distance = token_distance(outputs.logits, target.logits, mask, self.kind, weights.temperature)
        else:
            pair: tuple[torch.Tensor, ...] = outputs.logits, target.logits
            if self.kind is HeadKind.MULTI_LABEL_CLASSIFICATION:
                pair = label_by_label(*pair)
            distance = logit_distance(pair[0], pair[1], self.kind.is_score, weights.temperature)
        loss = weights.logit_weight * distance
        if weights.label_weight > 0:
            loss = loss + weights.label_weight * outputs.loss
        if weights.hidden_weight > 0:
            loss = loss + weights.hidden_weight * self._hidden(outputs.hidden_states, target.hidden_states, mask)
        if weights.attention_weight > 0:
            loss = loss + weights.attention_weight * self._attention(outputs.attentions, target.attentions, mask)
        return loss

    def _hidden(
        self, student: Sequence[torch.Tensor], teacher: Sequence[torch.Tensor], mask: torch.Tensor
    ) -> torch.Tensor:
        projection: Any = getattr(self.student, PROJECTION, None)
        distances = []
        for number, states in enumerate(student):
            projected = states if projection is None else projection[min(number, 1)](states)
            distances.append(hidden_distance(projected, teacher[self.layers[number]], mask))
        return torch.stack(distances).mean()

    def _attention(
        self, student: Sequence[torch.Tensor], teacher: Sequence[torch.Tensor], mask: torch.Tensor
    ) -> torch.Tensor:
        # Attentions have no entry for the embeddings. The first layers of a deep student may map to 0, so they use entry 0.
        sources = [max(number, 1) - 1 for number in self.layers[1:]]
        pairs = zip(student, sources, strict=True)
        return torch.stack([attention_distance(ours, teacher[source], mask) for ours, source in pairs]).mean()


def _show_attention(model: Any, stack: contextlib.ExitStack) -> None:
    """Switch `model` to an attention function that returns the probabilities, until `stack` closes."""
    before = model.config._attn_implementation
    if before not in _SHOW_ATTENTION:
        stack.callback(model.set_attn_implementation, before)
        model.set_attn_implementation("eager")


def _switch_off_attention_dropout(model: Any, stack: contextlib.ExitStack) -> None:
    """Set the dropout of the attention probabilities to zero until `stack` closes."""
    architecture = architecture_of(model.config)
    for layer in model.base_model.get_submodule(architecture.layers):
        path, name = architecture.attention_dropout, "p"
        if path is None:
            path, name = architecture.self_attention, "attention_dropout"
        module = layer.get_submodule(path)
        stack.callback(setattr, module, name, getattr(module, name))
        setattr(module, name, 0.0)


def _project(student: Any, size: int, stack: contextlib.ExitStack) -> None:
    """Add W_e and W_h, from the student's hidden size to `size`, to the student until `stack` closes."""
    width = student.config.hidden_size
    if width != size:
        matrices = nn.ModuleList(nn.Linear(width, size, bias=False) for _ in range(2))
        setattr(student, PROJECTION, matrices.to(student.device))
        stack.callback(delattr, student, PROJECTION)


@contextlib.contextmanager
def distilling(
    student: Any, distillation: Distillation | None, kind: HeadKind, separator: int
) -> Iterator[Distiller | None]:
    """Yield the `Distiller` of a student, with both models prepared until the block ends; None without a distillation.

    The teacher stays in evaluation mode with frozen parameters.
    """
    if distillation is None:
        yield None
        return
    teacher: Any = distillation.teacher
    teacher.eval().requires_grad_(False)
    with contextlib.ExitStack() as stack:
        if distillation.attention_weight > 0:
            _show_attention(student, stack)
            _show_attention(teacher, stack)
            _switch_off_attention_dropout(student, stack)
        if distillation.hidden_weight > 0:
            _project(student, teacher.config.hidden_size, stack)
        yield Distiller(student, distillation, kind, separator)
