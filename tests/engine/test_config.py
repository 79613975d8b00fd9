"""The guide's parameters, ranges and profiles."""

import dataclasses
import warnings

import pytest

import sona_stream
from sona_stream.config.engine import GuideRangeWarning, SonaConfig
from sona_stream.engine import SonaEngine

GUIDE_DEFAULTS = {
    "micro_lora_rank": 1,
    "base_lora_rank": 8,
    "micro_lora_lr": 0.001,
    "base_lora_lr": 0.0001,
    "ewc_lambda": 1000,
    "quality_threshold": 0.5,
    "trajectory_capacity": 10000,
    "pattern_clusters": 50,
    "background_interval_ms": 3600000,
    "enable_simd": True,
}
# Copied from the guide's text.
PROFILES = {
    "realtime": {
        "hiddenDim": 3072, "microLoraRank": 2, "baseLoraRank": 4, "microLoraLr": 0.0005, "qualityThreshold": 0.7,
        "patternClusters": 25, "trajectoryCapacity": 500, "enableSimd": True,
    },
    "batch": {
        "hiddenDim": 3072, "microLoraRank": 2, "baseLoraRank": 8, "microLoraLr": 0.001, "qualityThreshold": 0.5,
        "patternClusters": 50, "trajectoryCapacity": 5000, "backgroundIntervalMs": 1800000, "enableSimd": True,
    },
    "research": {
        "hiddenDim": 3072, "microLoraRank": 2, "baseLoraRank": 16, "microLoraLr": 0.002, "baseLoraLr": 0.0002,
        "ewcLambda": 2000, "qualityThreshold": 0.2, "patternClusters": 100, "trajectoryCapacity": 10000,
        "backgroundIntervalMs": 900000, "enableSimd": True,
    },
    "edge": {
        "hiddenDim": 3072, "microLoraRank": 1, "baseLoraRank": 4, "microLoraLr": 0.001, "qualityThreshold": 0.6,
        "patternClusters": 15, "trajectoryCapacity": 200, "backgroundIntervalMs": 7200000, "enableSimd": True,
    },
}  # fmt: skip


def test_defaults_are_the_guides():
    config = SonaConfig(hidden_dim=512)
    assert {name: getattr(config, name) for name in GUIDE_DEFAULTS} == GUIDE_DEFAULTS
    assert config.embedding_dim == 512
    assert SonaEngine(512).config == config


@pytest.mark.parametrize("name", PROFILES)
def test_profiles_are_the_guides_to_the_digit(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", GuideRangeWarning)
        expected = SonaConfig.from_dict(PROFILES[name])
    assert getattr(SonaConfig, name)() == expected
    assert getattr(SonaConfig, name)(hidden_dim=576).hidden_dim == 576


@pytest.mark.parametrize("name", PROFILES)
def test_profiles_draw_no_warning(name):
    getattr(SonaConfig, name)()


def test_both_spellings_and_a_round_trip():
    camel = SonaConfig.from_dict({"hiddenDim": 128, "microLoraRank": 2, "trajectoryTtlS": 5, "ewcLambda": 1500})
    snake = SonaConfig.from_dict(
        {"hidden_dim": 128, "micro_lora_rank": 2, "trajectory_ttl_s": 5, "ewc_lambda": 1500}
    )
    assert camel == snake == SonaConfig.from_dict(camel.to_dict())
    assert SonaEngine.with_config({"hiddenDim": 128}).config.hidden_dim == 128


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"hiddenDim": 64, "microLoraRnak": 2}, "microLoraRnak"),
        ({"hiddenDim": 64, "hidden_dim": 64}, "given twice"),
        ({"microLoraRank": 2}, "hidden_dim is required"),
        ({"hidden_dim": 64, "warn": False}, "unknown engine parameter 'warn'"),
    ],
)
def test_wrong_keys_are_named(values, message):
    with pytest.raises(ValueError, match=message):
        SonaConfig.from_dict(values)


HARD = {
    "hidden_dim": (0, 65537, 64.0, True, "64", None),
    "embedding_dim": (-1, 65537),
    "micro_lora_rank": (0, 3, 1.0),
    "base_lora_rank": (0, 65),
    "trajectory_capacity": (0, 1_000_001),
    "pattern_clusters": (0, 10_001),
    "background_interval_ms": (0, -5),
    "micro_lora_lr": (-1e-9, float("nan"), float("inf"), "x"),
    "base_lora_lr": (-1,),
    "ewc_lambda": (-1, float("nan")),
    "quality_threshold": (-0.1, 1.1),
    "enable_simd": (1, "yes"),
    "drop_policy": ("middle",),
    "trajectory_ttl_s": (0,),
    "max_delta_ratio": (0,),
    "flush_threshold": (0,),
    "seed": (-1,),
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in HARD.items() for value in values])
def test_outside_the_hard_limits_is_an_error_that_names_the_field(name, value):
    with pytest.raises(ValueError, match=rf"^{name} must be"):
        SonaConfig(**{"hidden_dim": 64, name: value})


def test_the_limits_themselves_are_allowed():
    low = {
        "hidden_dim": 1,
        "embedding_dim": 1,
        "base_lora_rank": 1,
        "trajectory_capacity": 1,
        "pattern_clusters": 1,
    }
    SonaConfig(**low, background_interval_ms=1, micro_lora_lr=0, base_lora_lr=0, ewc_lambda=0, warn=False)
    high = {"hidden_dim": 65536, "base_lora_rank": 64, "trajectory_capacity": 1_000_000, "pattern_clusters": 10_000}
    SonaConfig(**high, micro_lora_rank=2, warn=False)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("hidden_dim", 32),
        ("hidden_dim", 10_000),
        ("base_lora_rank", 2),
        ("trajectory_capacity", 50),
        ("pattern_clusters", 20),
        ("background_interval_ms", 1000),
    ],
)
def test_outside_the_guides_range_is_a_warning(name, value):
    with pytest.warns(GuideRangeWarning, match=rf"^{name} = {value} is outside the guide's range"):
        SonaConfig(**{"hidden_dim": 64, name: value})


def test_frozen_and_exported():
    config = SonaConfig(hidden_dim=64)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.hidden_dim = 65
    assert sona_stream.SonaConfig is SonaConfig
    assert sona_stream.SonaEngine is SonaEngine
