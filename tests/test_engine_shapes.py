import pytest

from q8trt.engine.shapes import (
    ShapeOptions,
    ShapeProfile,
    bucket_profiles,
    check_positions,
    covering,
    largest,
    parse_buckets,
    parse_shapes,
    show_profiles,
)
from q8trt.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "shape"),
    [
        ("16x128", (16, 128)),
        (" 1X8 ", (1, 8)),
        ("input_ids:16x128,attention_mask:16x128", (16, 128)),
        ("input_ids:16x128, attention_mask:16x128, token_type_ids:16x128", (16, 128)),
    ],
)
def test_trtexec_notation_is_read(text: str, shape: tuple[int, int]) -> None:
    assert parse_shapes(text) == shape


@pytest.mark.parametrize(
    "text", ["", "16", "16x", "x128", "16x128x2", "input_ids:", "input_ids=16x128", "-1x8", "16x128,"]
)
def test_what_cannot_be_read_gets_an_example(text: str) -> None:
    with pytest.raises(ConfigError, match=r'cannot read the shape .*: write "16x128" or "input_ids:16x128'):
        parse_shapes(text)


def test_inputs_must_agree() -> None:
    with pytest.raises(ConfigError, match=r"all inputs must share one shape; .* has 16x128 and 16x64"):
        parse_shapes("input_ids:16x128,attention_mask:16x64")


def test_zero_is_no_size() -> None:
    with pytest.raises(ConfigError, match="at least 1; got '0x128'"):
        parse_shapes("0x128")


def test_profile_covers_its_own_range_only() -> None:
    profile = ShapeProfile((1, 8), (4, 16), (8, 32))
    assert profile.covers((1, 8))
    assert profile.covers((8, 32))
    assert not profile.covers((9, 32))
    assert not profile.covers((1, 7))
    assert not profile.covers((4,))
    assert str(profile) == "1x8 to 8x32, best at 4x16"


def test_profile_refuses_a_wrong_order() -> None:
    with pytest.raises(ConfigError, match="batch must be min <= opt <= max; got 1, 64, 32"):
        ShapeProfile((1, 1), (64, 128), (32, 128))
    with pytest.raises(ConfigError, match="sequence must be min <= opt <= max; got 256, 128, 128"):
        ShapeProfile((1, 256), (16, 128), (32, 128))


def test_profile_refuses_sizes_below_one() -> None:
    with pytest.raises(ConfigError, match="min must be a positive batch and sequence; got 0x1"):
        ShapeProfile((0, 1))


def test_profiles_stay_within_the_position_table() -> None:
    check_positions([ShapeProfile()], 128)
    with pytest.raises(ConfigError, match=r"max has sequence 128, but the model has 64 positions; use .* 64 or less"):
        check_positions([ShapeProfile((1, 1), (1, 8), (1, 8)), ShapeProfile()], 64)


def test_buckets_are_read() -> None:
    assert parse_buckets("32,64, 128") == (32, 64, 128)
    for text in ("", "32,", "0,32", "32x64", "-1", "1.5"):
        with pytest.raises(
            ConfigError, match=r"cannot read the buckets .*: write sequence lengths in tokens, as 32,64,128"
        ):
            parse_buckets(text)


def test_each_shape_has_one_bucket() -> None:
    profiles = bucket_profiles((32, 64, 128), 8, 16)
    assert [str(each) for each in profiles] == [
        "1x1 to 16x32, best at 8x32", "1x33 to 16x64, best at 8x64", "1x65 to 16x128, best at 8x128",
    ]  # fmt: skip
    for length in range(1, 129):
        [index] = [number for number, each in enumerate(profiles) if each.covers((3, length))]
        assert covering(profiles, (3, length)) == index
        assert profiles[index].max[1] >= length > (0, 32, 64)[index]
    assert covering(profiles, (1, 129)) is covering(profiles, (17, 8)) is covering([], (1, 1)) is None
    assert largest(profiles) == (16, 128)
    assert show_profiles(profiles[:2]) == "1x1 to 16x32, best at 8x32; 1x33 to 16x64, best at 8x64"


def test_the_tightest_of_several_profiles_is_taken() -> None:
    wide, short, narrow = (ShapeProfile((1, 1), most, most) for most in ((8, 64), (8, 32), (1, 32)))
    assert covering([wide, short, narrow], (1, 20)) == 2
    assert covering([wide, short, narrow], (2, 20)) == 1
    assert covering([wide, short, narrow], (2, 40)) == 0


@pytest.mark.parametrize("buckets", [(), (64, 32), (32, 32)])
def test_buckets_must_ascend(buckets: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="buckets must ascend, each longer than the one before; got"):
        bucket_profiles(buckets, 8, 16)
    with pytest.raises(ConfigError, match="batch must be min <= opt <= max; got 1, 16, 8"):
        bucket_profiles((32,), 16, 8)


@pytest.mark.parametrize(
    ("options", "profile"),
    [
        (ShapeOptions(max_shapes=(8, 64)), "1x1 to 8x64, best at 8x64"),
        (ShapeOptions(max_shapes=(64, 256)), "1x1 to 64x256, best at 16x128"),
        (ShapeOptions(opt_shapes=(64, 32)), "1x1 to 64x128, best at 64x32"),
        (ShapeOptions(min_shapes=(1, 200)), "1x200 to 32x200, best at 16x200"),
        (ShapeOptions(min_shapes=(4, 8), max_shapes=(4, 8)), "4x8 to 4x8, best at 4x8"),
        (ShapeOptions(opt_shapes=(1, 16), max_shapes=(8, 16)), "1x1 to 8x16, best at 1x16"),
    ],
)
def test_default_shapes_fit_those_that_are_set(options: ShapeOptions, profile: str) -> None:
    assert [str(each) for each in options.profiles(128)] == [profile]


@pytest.mark.parametrize(
    "options",
    [
        ShapeOptions(opt_shapes=(64, 32), max_shapes=(32, 32)),
        ShapeOptions(min_shapes=(1, 64), max_shapes=(8, 32)),
        ShapeOptions(min_shapes=(8, 8), opt_shapes=(4, 8)),
    ],
)
def test_shapes_that_are_set_and_contradict_are_refused(options: ShapeOptions) -> None:
    with pytest.raises(ConfigError, match=r"(batch|sequence) must be min <= opt <= max"):
        options.profiles(128)
