"""Distances to a teacher, against NumPy and SciPy; what student and teacher are asked for, and that it is put back."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
from conftest import layer_count
from torch import nn

from q8trt.quantization.architectures import ARCHITECTURES
from q8trt.tasks.heads import HeadKind
from q8trt.training.distillation import (
    PROJECTION,
    Distillation,
    Distiller,
    attention_distance,
    distilling,
    hidden_distance,
    layer_map,
    logit_distance,
    token_types,
)

Models = Callable[..., Any]
SEPARATOR = 3
MASK = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 1, 0, 0, 0]])


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_kl_distance_is_scipys(temperature: float) -> None:
    student, teacher = np.random.default_rng(0).normal(size=(2, 7, 3))
    p, q = (scipy.special.softmax(logits / temperature, axis=1) for logits in (student, teacher))
    expected = np.mean([scipy.stats.entropy(q[i], p[i]) for i in range(7)]) * temperature**2
    got = logit_distance(torch.tensor(student), torch.tensor(teacher), False, temperature)
    assert float(got) == pytest.approx(expected, rel=1e-5)
    assert float(logit_distance(torch.tensor(teacher), torch.tensor(teacher), False, temperature)) == 0


def test_regression_distance_is_the_mean_square() -> None:
    student, teacher = np.random.default_rng(1).normal(size=(2, 7, 1))
    got = logit_distance(torch.tensor(student), torch.tensor(teacher), True, 3.0)
    assert float(got) == pytest.approx(np.mean((student - teacher) ** 2), rel=1e-5)


def test_hidden_distance_is_the_mean_square_of_text() -> None:
    student, teacher = np.random.default_rng(2).normal(size=(2, 3, 5, 4))
    expected = np.mean((student - teacher)[MASK == 1] ** 2)
    got = hidden_distance(torch.tensor(student), torch.tensor(teacher), torch.tensor(MASK))
    assert float(got) == pytest.approx(expected, rel=1e-5)


def looped_attention(student: np.ndarray, teacher: np.ndarray) -> float:
    """Squared distance over real keys, averaged over heads and real queries, by loops."""
    distances = [
        sum((student[b, a, i, j] - teacher[b, a, i, j]) ** 2 for j in range(5) if MASK[b, j])
        for b in range(3)
        for a in range(student.shape[1])
        for i in range(5)
        if MASK[b, i]
    ]
    return float(np.mean(distances))


def test_attention_distance_leaves_padding_out_on_both_sides() -> None:
    student, teacher = scipy.special.softmax(np.random.default_rng(3).normal(size=(2, 3, 2, 5, 5)), axis=-1)
    got = attention_distance(torch.tensor(student), torch.tensor(teacher), torch.tensor(MASK))
    assert float(got) == pytest.approx(looped_attention(student, teacher), rel=1e-5)


def test_attention_of_other_numbers_of_heads_is_averaged() -> None:
    generator = np.random.default_rng(4)
    student, teacher = (scipy.special.softmax(generator.normal(size=(3, n, 5, 5)), axis=-1) for n in (2, 6))
    got = attention_distance(torch.tensor(student), torch.tensor(teacher), torch.tensor(MASK))
    expected = looped_attention(student.mean(1, keepdims=True), teacher.mean(1, keepdims=True))
    assert float(got) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("student", "teacher", "expected"),
    [
        (4, 12, [0, 3, 6, 9, 12]),  # TinyBERT's
        (6, 6, [0, 1, 2, 3, 4, 5, 6]),
        (6, 24, [0, 4, 8, 12, 16, 20, 24]),
        (5, 12, [0, 2, 5, 7, 10, 12]),  # 2.4, 4.8, 7.2, 9.6
        (4, 2, [0, 1, 1, 2, 2]),  # halves count up
    ],
)
def test_layer_map(student: int, teacher: int, expected: list[int]) -> None:
    assert layer_map(student, teacher) == expected


def test_token_types_are_the_tokenizers(tiny_tokenizer: Any) -> None:
    texts = ["a dog", "run", "the red house"], ["the cat and a fish", "walk home", "go"]
    for arguments in (texts, texts[:1]):
        encoded = tiny_tokenizer(*arguments, padding=True, return_tensors="pt")
        got = token_types(encoded["input_ids"], encoded["attention_mask"], tiny_tokenizer.sep_token_id)
        assert torch.equal(got, encoded["token_type_ids"])
    assert got.sum() == 0


def test_the_loss_is_the_weighted_sum() -> None:
    generator = torch.Generator().manual_seed(0)
    config = SimpleNamespace(model_type="bert", type_vocab_size=1, num_hidden_layers=2)
    student, teacher = (SimpleNamespace(config=config, forward=lambda input_ids: None) for _ in range(2))
    mask = torch.tensor(MASK)

    def outputs() -> Any:
        def draw(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=generator)

        return SimpleNamespace(
            loss=torch.tensor(7.0),
            logits=draw(3, 1),
            hidden_states=tuple(draw(3, 5, 4) for _ in range(3)),
            attentions=tuple(draw(3, 2, 5, 5).softmax(-1) for _ in range(2)),
        )

    ours, theirs = outputs(), outputs()
    logits = logit_distance(ours.logits, theirs.logits, True, 1.0)
    pairs = zip(ours.hidden_states, theirs.hidden_states, strict=True)
    hidden = sum(hidden_distance(a, b, mask) for a, b in pairs) / 3
    pairs = zip(ours.attentions, theirs.attentions, strict=True)
    attention = sum(attention_distance(a, b, mask) for a, b in pairs) / 2
    for weights in ([0.5, 0.5, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0], [0.25, 2.0, 3.0, 4.0], [1.0, 0.0, 0.0, 0.5]):
        label, logit, of_hidden, of_attention = weights
        settings: Any = Distillation(teacher, label, logit, 1.0, of_hidden, of_attention)  # type: ignore[arg-type]
        got = Distiller(student, settings, HeadKind.REGRESSION, SEPARATOR).loss(ours, {"attention_mask": mask}, theirs)  # type: ignore
        expected = label * 7 + logit * logits + of_hidden * hidden + of_attention * attention
        assert float(got) == pytest.approx(float(expected), rel=1e-5)


def test_only_what_is_weighted_is_asked_for(tiny_model: Models) -> None:
    student, teacher = tiny_model(), tiny_model(seed=1)
    for hidden, attention in ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0)):
        settings = Distillation(teacher, hidden_weight=hidden, attention_weight=attention)
        with distilling(student, settings, HeadKind.REGRESSION, SEPARATOR) as distiller:
            assert distiller is not None
            expected = {"output_hidden_states": True} if hidden else {}
            assert distiller.wanted == expected | ({"output_attentions": True} if attention else {})
    with distilling(student, None, HeadKind.REGRESSION, SEPARATOR) as nobody:
        assert nobody is None


def ask(student: Any, distiller: Any, batch: dict[str, Any]) -> tuple[Any, Any]:
    inputs = {**batch, "labels": torch.zeros(len(batch["input_ids"]))}
    return student(**inputs, **distiller.wanted), distiller.ask_teacher(inputs)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_what_models_give_out(
    implementation: str, architecture: str, tiny_model: Models, tiny_batch: Callable[..., Any]
) -> None:
    """Hidden states from the embeddings' output to the last layer's; probabilities that sum to one, none for padding."""
    student, teacher, batch = tiny_model(architecture), tiny_model(architecture, seed=1), tiny_batch(architecture)
    if implementation != "eager" and not ARCHITECTURES[architecture].attention_registry:
        pytest.skip("transformers has one implementation of its attention")
    for model in (student, teacher):
        model.set_attn_implementation(implementation)
    embedded: list[torch.Tensor] = []
    layers = student.base_model.get_submodule(ARCHITECTURES[architecture].layers)
    layers[0].register_forward_pre_hook(lambda _, args, kwargs: embedded.append(args[0]), with_kwargs=True)
    settings = Distillation(teacher, hidden_weight=1.0, attention_weight=1.0)
    with distilling(student, settings, HeadKind.REGRESSION, SEPARATOR) as distiller:
        for outputs in ask(student, distiller, batch):
            assert len(outputs.hidden_states) == 3
            assert len(outputs.attentions) == 2
            for probabilities in outputs.attentions:
                torch.testing.assert_close(probabilities.sum(-1), torch.ones(3, 2, 17))
                assert (probabilities * (1 - batch["attention_mask"])[:, None, None, :]).abs().max() < 1e-6
        embedded.clear()
        assert torch.equal(ask(student, distiller, batch)[0].hidden_states[0], embedded[0])
    for model in (student, teacher):
        assert model.config._attn_implementation == implementation


def test_quantized_attention_shows_itself(
    tiny_model: Models, tiny_batch: Callable[..., Any], architecture: str
) -> None:
    """The recipe's own attention function stays, and what it gives out is fit to learn from."""
    from q8trt.quantization.calibration import calibrate
    from q8trt.quantization.insertion import insert_quantizers
    from q8trt.quantization.recipe import load_recipe

    student, teacher, batch = tiny_model(architecture), tiny_model(architecture), tiny_batch(architecture)
    insert_quantizers(student, load_recipe("full"))
    calibrate(student, load_recipe("full"), [batch])
    own = student.config._attn_implementation
    settings = Distillation(teacher, 0.0, 0.0, 1.0, hidden_weight=1.0, attention_weight=1.0)
    with distilling(student.train(), settings, HeadKind.REGRESSION, SEPARATOR) as distiller:
        assert student.config._attn_implementation == own
        student.eval()  # no dropout: teacher and student differ by quantization alone
        outputs, target = ask(student, distiller, batch)
        loss = distiller.loss(outputs, batch, target)
        assert 0 < float(loss.detach()) < 0.1
        loss.backward()
    query = ARCHITECTURES[architecture].query
    gradients = [p.grad for n, p in student.named_parameters() if n.endswith(f"{query}.weight")]
    assert len(gradients) == layer_count(architecture)
    assert all(gradient is not None and gradient.abs().max() > 0 for gradient in gradients)
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_a_model_is_at_no_distance_from_itself(tiny_model: Models, tiny_batch: Callable[..., Any]) -> None:
    student, teacher, batch = tiny_model(), tiny_model(), tiny_batch()
    settings = Distillation(teacher, 0.0, 1.0, 1.0, hidden_weight=1.0, attention_weight=1.0)
    with distilling(student, settings, HeadKind.REGRESSION, SEPARATOR) as distiller:
        outputs, target = ask(student, distiller, batch)
        assert float(distiller.loss(outputs, batch, target)) == 0


def test_padding_does_not_count(tiny_model: Models, tiny_batch: Callable[..., Any]) -> None:
    """More padding, and other ids in it, change nothing."""
    student, teacher, batch = tiny_model(), tiny_model(seed=1), tiny_batch()
    longer = {name: nn.functional.pad(tensor, (0, 7)) for name, tensor in batch.items()}
    longer["input_ids"] = longer["input_ids"] + (1 - longer["attention_mask"]) * 9
    settings = Distillation(teacher, 0.0, 0.0, 1.0, hidden_weight=1.0, attention_weight=1.0)
    with distilling(student, settings, HeadKind.REGRESSION, SEPARATOR) as distiller:
        losses = []
        for each in (batch, longer):
            outputs, target = ask(student, distiller, each)
            losses.append(distiller.loss(outputs, each, target))
    assert float(losses[0]) > 0.1
    assert float(losses[0]) == pytest.approx(float(losses[1]), rel=1e-5)


def test_attention_dropout_is_off_and_put_back(tiny_model: Models, tiny_batch: Callable[..., Any]) -> None:
    """Transformers drops from the probabilities that it gives out; two runs of training mode must show the same ones."""
    dropouts = {"attention_probs_dropout_prob": 0.5, "hidden_dropout_prob": 0.0}
    student, teacher, batch = tiny_model(**dropouts).train(), tiny_model(**dropouts), tiny_batch()
    attention = student.bert.encoder.layer[1].attention.self
    with distilling(student, Distillation(teacher, attention_weight=1.0), HeadKind.REGRESSION, SEPARATOR) as distiller:
        first, second = (ask(student, distiller, batch)[0].attentions[1] for _ in range(2))
        assert torch.equal(first, second)
        assert attention.dropout.p == 0
    assert attention.dropout.p == 0.5
    with distilling(student, Distillation(teacher), HeadKind.REGRESSION, SEPARATOR):
        assert attention.dropout.p == 0.5


def test_a_larger_teacher(tiny_model: Models, tiny_batch: Callable[..., Any]) -> None:
    """Twice as deep, wider, with more heads: layers are mapped, widths projected by what learns along."""
    student, batch = tiny_model(), tiny_batch()
    teacher = tiny_model(seed=1, num_hidden_layers=4, hidden_size=48, num_attention_heads=3)
    settings = Distillation(teacher, 0.0, 0.0, 1.0, hidden_weight=1.0, attention_weight=2.0)
    with distilling(student, settings, HeadKind.REGRESSION, SEPARATOR) as distiller:
        outputs, target = ask(student, distiller, batch)
        loss = distiller.loss(outputs, batch, target)
        w_e, w_h = (matrix.weight for matrix in getattr(student, PROJECTION))
        mask, expected = batch["attention_mask"], []
        for states, source, matrix in zip(outputs.hidden_states, (0, 2, 4), (w_e, w_h, w_h), strict=True):
            expected.append(hidden_distance(states @ matrix.T, target.hidden_states[source], mask))
        attention = [
            attention_distance(outputs.attentions[m], target.attentions[source], mask) for m, source in ((0, 1), (1, 3))
        ]
        assert float(loss) == pytest.approx(float(sum(expected) / 3 + 2 * sum(attention) / 2), rel=1e-5)
        loss.backward()
        assert w_e.grad is not None
        assert w_h.grad is not None
        assert {PROJECTION + ".0.weight", PROJECTION + ".1.weight"} <= student.state_dict().keys()
    assert not hasattr(student, PROJECTION)
    assert not [name for name in student.state_dict() if PROJECTION in name]


def test_a_teacher_of_the_same_width_needs_no_projection(tiny_model: Models) -> None:
    student = tiny_model()
    with distilling(student, Distillation(tiny_model(seed=1), hidden_weight=1.0), HeadKind.REGRESSION, SEPARATOR):
        assert not hasattr(student, PROJECTION)


def test_a_shallower_teacher(tiny_model: Models, tiny_batch: Callable[..., Any]) -> None:
    """Its first layer's attention teaches the student's first ones, though their states come from the embeddings."""
    student, teacher, batch = tiny_model(num_hidden_layers=5), tiny_model(seed=1, num_hidden_layers=2), tiny_batch()
    with distilling(
        student, Distillation(teacher, 0.0, 0.0, attention_weight=1.0), HeadKind.REGRESSION, SEPARATOR
    ) as distiller:
        outputs, target = ask(student, distiller, batch)
        sources = (0, 0, 0, 1, 1)  # layer_map: 0, 0, 1, 1, 2, 2
        pairs = [
            attention_distance(ours, target.attentions[source], batch["attention_mask"])
            for ours, source in zip(outputs.attentions, sources, strict=True)
        ]
        assert float(distiller.loss(outputs, batch, target)) == pytest.approx(float(sum(pairs) / 5), rel=1e-5)


def test_a_teacher_gets_the_token_types_that_it_reads(tiny_model: Models, tiny_batch: Callable[..., Any]) -> None:
    """A DistilBERT learns from a BERT: its tokenizer makes no token types, the BERT was trained with them."""
    bert, distilbert = tiny_model("bert"), tiny_model("distilbert", seed=1)
    pair = {
        "input_ids": torch.tensor([[2, 9, 10, 3, 11, 12, 3], [2, 9, 3, 11, 3, 0, 0]]),
        "attention_mask": torch.tensor([[1] * 7, [1] * 5 + [0] * 2]),
    }
    types = torch.tensor([[0, 0, 0, 0, 1, 1, 1], [0, 0, 0, 1, 1, 0, 0]])
    with distilling(distilbert, Distillation(bert), HeadKind.REGRESSION, SEPARATOR) as distiller, torch.no_grad():
        answer = distiller.ask_teacher(pair).logits
        assert torch.equal(answer, bert(**pair, token_type_ids=types).logits)
        assert not torch.equal(answer, bert(**pair).logits)
    with distilling(bert, Distillation(distilbert), HeadKind.REGRESSION, SEPARATOR) as distiller, torch.no_grad():
        answer = distiller.ask_teacher({**pair, "token_type_ids": types}).logits
        assert torch.equal(answer, distilbert(**pair).logits)


def test_a_teacher_trained_without_token_types_is_asked_without(tiny_model: Models) -> None:
    """A BERT with XLM-R's tokenizer: it was trained with zeros, its QAT must not meet a teacher that sees ones."""
    bert = tiny_model("bert")
    pair = {"input_ids": torch.tensor([[2, 9, 10, 3, 11, 12, 3]]), "attention_mask": torch.ones(1, 7, dtype=torch.long)}
    settings = Distillation(bert, token_types=False)
    with distilling(tiny_model("bert", seed=1), settings, HeadKind.REGRESSION, SEPARATOR) as distiller, torch.no_grad():
        assert torch.equal(distiller.ask_teacher(pair).logits, bert(**pair).logits)


def test_the_teacher_computes_without_gradients_or_dropout(tiny_model: Models, tiny_batch: Callable[..., Any]) -> None:
    student, teacher, batch = tiny_model(), tiny_model(seed=1).train(), tiny_batch()
    with distilling(student, Distillation(teacher), HeadKind.REGRESSION, SEPARATOR) as distiller:
        first, second = (distiller.ask_teacher(batch).logits for _ in range(2))
    assert torch.equal(first, second)
    assert not first.requires_grad
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


def test_everything_is_put_back_after_an_error(tiny_model: Models) -> None:
    student, teacher = tiny_model(), tiny_model(hidden_size=48, num_attention_heads=3)
    student.set_attn_implementation("sdpa")
    before = student.bert.encoder.layer[0].attention.self.dropout.p
    settings = Distillation(teacher, hidden_weight=1.0, attention_weight=1.0)
    with pytest.raises(KeyboardInterrupt), distilling(student, settings, HeadKind.REGRESSION, SEPARATOR):
        raise KeyboardInterrupt
    assert student.config._attn_implementation == "sdpa"
    assert student.bert.encoder.layer[0].attention.self.dropout.p == before
    assert not hasattr(student, PROJECTION)
