"""PPO end to end on a Llama that has never been trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_language import llama, tokenizer, write_rows

import mmpeft
from mmpeft.cli.shipped import find_task, load_task
from mmpeft.data.language.tiny.rewards import REWARDS
from mmpeft.heads.actor_critic import ActorCritic
from mmpeft.objectives import ppo as objectives
from mmpeft.objectives.generation import Writer
from mmpeft.objectives.ppo import PPO, judged_by_rule
from mmpeft.objectives.ppo_settings import PPOSettings

LORA = {"method": "lora", "rank": 4, "targets": "all"}


@pytest.fixture
def ppo() -> Any:
    return load_task(find_task("llm/ppo"))


@pytest.fixture
def prompts(tmp_path: Path) -> str:
    things = ["cat", "dog", "sun", "moon", "car", "bank", "bike", "one", "two", "three", "four", "five"]
    return write_rows(
        tmp_path / "prompts.jsonl", [{"prompt": f"{how} {own} ?"} for own in things for how in ("a", "the")]
    )


def settings(model: str, prompts: str, output: Path, **changes: Any) -> dict[str, Any]:
    return {
        "task": "llm/ppo",
        "model": model,
        "adapters": {"policy": LORA, "value": LORA},
        "data": {"name": "prompts", "path": prompts, "validation": 4, "test": 6},
        "reward": {"rule": "gladness"},
        "ppo": {"epochs": 2, "minibatch": 4, "kl": 0.01, "missing_end": 0.0},
        "train": {"max_steps": 3, "batch_size": 8, "lr": 1e-2},
        "writing": {"max_new_tokens": 4},
        "output": str(output),
        **changes,
    }


def test_a_run_raises_the_reward(
    ppo: Any, model: str, prompts: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(REWARDS, "gladness", lambda row, text: sum(w[0] < "e" for w in text.split()) / 4)
    config = ppo.Config.model_validate(
        settings(
            model,
            prompts,
            tmp_path / "run",
            train={"max_steps": 40, "batch_size": 12, "lr": 3e-2, "monitor": None, "evaluate_every": 20},
        )
    )
    metrics = ppo.run(config)
    assert metrics["frozen"]["kl"] == pytest.approx(0, abs=1e-5)
    assert metrics["test"]["reward"] > metrics["frozen"]["reward"] + 0.15
    assert metrics["test"]["kl"] > 0
    assert ppo.evaluate(config) == pytest.approx(metrics["test"], rel=1e-4)
    assert ppo.predict(config.model_copy(update={"prompt": "a cat ?"}), 0).text
    bare = mmpeft.load(llama(), tmp_path / "run" / "adapter" / "policy")
    assert not any("task" in key for key in bare.state_dict())


def test_a_resumed_run_ends_as_one_that_was_not_stopped(ppo: Any, model: str, prompts: str, tmp_path: Path) -> None:
    ends = []
    for name, stages in (("whole", [4]), ("parts", [2, 4])):
        for number, steps in enumerate(stages):
            train = {"max_steps": steps, "batch_size": 8, "lr": 1e-2, "schedule": "constant", "monitor": None}
            train |= {"save_every": 1, "resume": "latest" if number else None}
            config = ppo.Config.model_validate(settings(model, prompts, tmp_path / name, train=train))
            ppo.run(config)
        handle = mmpeft.load(llama(), tmp_path / name / "adapter" / "policy")
        ends.append(handle.state_dict())
    assert all(torch.equal(value, ends[1][key]) for key, value in ends[0].items())


def test_a_reward_model_works_on_the_same_backbone(ppo: Any, model: str, prompts: str, tmp_path: Path) -> None:
    reward = load_task(find_task("llm/reward"))
    pairs = [{"prompt": f"a {own} ?", "chosen": " red", "rejected": " blue"} for own in ("cat", "dog", "sun", "moon")]
    trained = {
        "task": "llm/reward",
        "model": model,
        "adapters": {"main": LORA},
        "data": {"name": "preference", "path": write_rows(tmp_path / "p.jsonl", pairs * 4), "validation": 4, "test": 4},
        "train": {"epochs": 2, "batch_size": 4, "lr": 1e-2},
        "output": str(tmp_path / "reward"),
    }
    reward.run(reward.Config.model_validate(trained))
    judge = {"adapter": str(tmp_path / "reward" / "adapter")}
    metrics = ppo.run(ppo.Config.model_validate(settings(model, prompts, tmp_path / "run", reward=judge)))
    assert metrics["frozen"]["reward"] != 0
    assert (tmp_path / "run" / "adapter" / "value" / "mmpeft.json").is_file()
    assert not (tmp_path / "run" / "adapter" / "reward").exists()


def make_objective() -> tuple[ActorCritic, mmpeft.Adapters, PPO]:
    model = ActorCritic(llama())
    mmpeft.adapt(model, mmpeft.LoRA(rank=4, targets="all"), name="policy")
    mmpeft.adapt(model, [mmpeft.LoRA(rank=4, targets="all"), mmpeft.LinearProbe()], name="value")
    adapters = mmpeft.adapters(model)
    adapters.activate("policy", "value", trainable=True)
    writer = Writer(tokenizer(), [2], 5)
    return model, adapters, PPO(adapters, PPOSettings(), writer, judged_by_rule(lambda row, text: float(row["worth"])))


def ask() -> dict[str, Any]:
    ids = torch.tensor([[0, 0, 1, 39, 42], [1, 40, 41, 42, 43]])
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    return {"id": ["a", "b"], "rows": [{"worth": 1}, {"worth": 2}], "prompt_ids": ids, "prompt_mask": mask}


def test_what_was_written_has_the_log_probabilities_of_the_library_s_own_model() -> None:
    model, adapters, objective = make_objective()
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in adapters.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    found = objective.written(model, ask())
    for speaker, name in ((None, "reference"), ("policy", "scores")):
        with objectives.speaking(adapters, speaker), torch.no_grad():
            for row in range(2):
                ids = found["input_ids"][row][found["attention_mask"][row].bool()][None]
                logs = model.backbone(ids).logits.log_softmax(-1)[0]
                count = int(found["mask"][row].sum())
                expected = [float(logs[t - 1, ids[0, t]]) for t in range(ids.shape[1] - count, ids.shape[1])]
                assert found[name][row, :count].tolist() == pytest.approx(expected, abs=1e-5)
    ended = (found["input_ids"][:, 5:] == 2).any(1)
    assert torch.equal(found["reward"], torch.tensor([1.0, 2.0]) - 1.0 * ~ended)


@pytest.mark.parametrize("own", [{"repetition_penalty": 9.0}, {"temperature": 0.1}, {"no_repeat_ngram_size": 1}])
def test_draws_are_of_the_policy_whatever_its_generation_configuration(own: dict[str, float]) -> None:
    drawn = []
    for options in ({}, own):
        model, _, objective = make_objective()
        model.backbone.generation_config.update(eos_token_id=None, **options)
        torch.manual_seed(3)
        drawn.append(objective.written(model, ask()))
    assert torch.equal(drawn[0]["input_ids"], drawn[1]["input_ids"])
    expected = ((drawn[0]["scores"] - drawn[0]["reference"]) * drawn[0]["mask"]).sum(1)
    assert torch.equal(drawn[0]["kl"], expected)


def test_at_first_the_ratio_is_one_and_both_adapters_learn() -> None:
    model, adapters, objective = make_objective()
    found = objective.written(model, ask()) | {"counted": True}
    loss, logs = objective.loss(model.train(), found)
    assert float(logs["policy_loss"]) == pytest.approx(-float((found["advantages"] * found["mask"]).sum()), abs=1e-4)
    assert float(logs["clipped"]) == 0
    loss.backward()
    adapters.check_gradients()
    assert all(p.grad is None for n, p in model.named_parameters() if not n.startswith("mmpeft."))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"adapters": {"main": LORA}}, "adapters: main: PPO trains 'policy' and 'value'"),
        ({"reward": {}}, "give either adapter or rule"),
        ({"reward": {"rule": "qualty"}}, r"no 'qualty' \(did you mean 'quality'"),
        ({"train": {"max_steps": 1, "gradient_checkpointing": True}}, "adapters take turns within a step"),
    ],
)
def test_what_is_refused(
    ppo: Any, model: str, prompts: str, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        ppo.Config.model_validate(settings(model, prompts, tmp_path / "run", **changes))


def test_other_data_is_refused(ppo: Any, model: str, prompts: str, tmp_path: Path) -> None:
    data = {"name": "prompt_completion", "path": prompts}
    config = ppo.Config.model_validate(settings(model, prompts, tmp_path / "run", data=data))
    with pytest.raises(ValueError, match=r"data\.name: 'prompt_completion': this task answers prompts by itself"):
        ppo.run(config)
