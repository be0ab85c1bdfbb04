import pytest
from pydantic import BaseModel

from magicapture_core.config import PRESETS, LoraConfig, TrainConfig, parse_config
from magicapture_core.types import MagiCaptureError


def test_the_defaults_are_the_papers():
    config = TrainConfig()
    assert (config.inversion.num_steps, config.inversion.token_learning_rate) == (1200, 5e-4)
    assert (config.tuning.num_steps, config.tuning.lora_learning_rate, config.tuning.token_learning_rate) == (
        1500,
        1e-4,
        1e-5,
    )
    assert (config.loss.attention_weight, config.lora.lora_rank, config.lora.targets) == (2.5, 4, "cross-attention")
    assert TrainConfig.preset("paper").accumulate == 4


@pytest.mark.parametrize("name", PRESETS)
def test_a_configuration_survives_its_json(name):
    config = TrainConfig.preset(name)
    assert TrainConfig.model_validate_json(config.model_dump_json()) == config


def test_a_misspelt_knob_is_named_in_one_line():
    with pytest.raises(MagiCaptureError, match=r"^settings: lora\.rank=8: [^\n]*$"):
        parse_config({"lora": {"rank": 8}})


def test_every_fault_is_named():
    with pytest.raises(MagiCaptureError, match=r"seed=-1.*resolution=100"):
        parse_config({"seed": -1, "resolution": 100})


def test_phase_1_without_a_rate_would_learn_nothing():
    with pytest.raises(MagiCaptureError, match=r"inversion\.token_learning_rate=0"):
        parse_config({"inversion": {"token_learning_rate": 0}})


def test_a_task_stands_once():
    with pytest.raises(MagiCaptureError, match="each task once"):
        parse_config({"tuning": {"tasks": ["source", "source"]}})


def test_every_knob_explains_itself():
    def knobs(model: type[BaseModel]):
        for name, field in model.model_fields.items():
            if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
                yield from knobs(field.annotation)
            else:
                yield name, field.description

    assert [name for name, description in knobs(TrainConfig) if not description] == []


def test_settings_are_frozen():
    with pytest.raises(ValueError, match="frozen"):
        LoraConfig().lora_rank = 8
