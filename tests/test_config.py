"""Config files: overrides, variables, and errors that name the key."""

from pathlib import Path

import pytest

from genaim.config import find_recipe, load_config, recipes, validate
from genaim.training.config import RunConfig, parse_run


@pytest.fixture
def minimal() -> dict:
    return {
        "kind": "tokenizer",
        "name": "x",
        "data": {"train": {"path": "x"}, "image_size": 256},
        "tokenizer": {"kind": "multiscale_vq"},
        "steps": 1,
        "batch_size": 1,
    }


def test_overrides_reach_into_mappings(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("a: {b: 1, c: [1, 2]}\nd: x\n")
    config = load_config(path, ["a.b=2.5", "a.c=[3]", "e.f=true", "d=null"])
    assert config == {"a": {"b": 2.5, "c": [3]}, "d": None, "e": {"f": True}}


def test_variables_are_expanded_or_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.yaml"
    path.write_text('a: ["${GENAIM_DATA}/x"]\n')
    monkeypatch.setenv("GENAIM_DATA", "/data")
    assert load_config(path) == {"a": ["/data/x"]}
    path.write_text("a: ${NOT_SET_ANYWHERE}/x\n")
    with pytest.raises(ValueError, match="environment variable NOT_SET_ANYWHERE"):
        load_config(path)


@pytest.mark.parametrize(
    ("text", "override", "message"),
    [
        ("a: [", "", "is not valid YAML"),
        ("just text", "", "must hold a YAML mapping"),
        ("a: 1", "b", "must have the form key=value"),
        ("a: 1", "a.b=2", "reaches into 'a', which is a value"),
        ("a: 1", "b=[1", "is not valid YAML"),
    ],
)
def test_broken_files_and_overrides(tmp_path: Path, text: str, override: str, message: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        load_config(path, [override] if override else [])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"step": 1}, r"unknown key 'step'; did you mean 'steps'\?"),
        (
            {"data": {"train": {"path": "x"}, "image_sze": 4}},
            r"unknown key 'data\.image_sze'; did you mean 'image_size'\?",
        ),
        (
            {"tokenizer": {"kind": "multiscale_vq", "codebook": {"sise": 4}}},
            r"unknown key 'tokenizer\.codebook\.sise'; did you mean 'size'\?",
        ),
        ({"steps": 0}, r"key 'steps' is 0; it must be greater than 0\.$"),
        (
            {"data": {"train": [], "image_size": 8}},
            r"key 'data\.train' is \[\]; it must have at least 1 item\.$",
        ),
        ({"steps": "x"}, r"key 'steps' is 'x'; it must be a valid integer\.$"),
        ({"optimizer": {"schedule": "cosin"}}, r"key 'optimizer\.schedule'"),
        ({"kind": "tokeniser"}, r"key 'kind' is 'tokeniser'; did you mean 'tokenizer'\?"),
    ],
)
def test_wrong_keys_are_named_with_the_nearest(minimal: dict, changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        parse_run(minimal | changes, "recipe.yaml")
    assert "\n" not in str(error.value)
    assert str(error.value).startswith("recipe.yaml: ")


def test_missing_keys_are_named(minimal: dict) -> None:
    del minimal["steps"]
    with pytest.raises(ValueError, match=r"key 'steps' is missing\.$"):
        parse_run(minimal, "recipe.yaml")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mlp_ratio": -1}, r"key 'model\.mlp_ratio' is -1; it must be greater than 0\.$"),
        ({"mlp_ratio": float("inf")}, r"key 'model\.mlp_ratio' is inf; it must be a finite number\.$"),
        (
            {"kind": "causal", "head": {"kind": "categorical", "label_smoothing": 2}},
            r"key 'model\.head\.label_smoothing' is 2; it must be less than 1\.$",
        ),
    ],
)
def test_numbers_out_of_range_are_refused(minimal: dict, changes: dict, message: str) -> None:
    run = minimal | {"kind": "generator", "tokenizer": "emoji-vq", "model": {"kind": "var"} | changes}
    with pytest.raises(ValueError, match=message):
        parse_run(run, "recipe.yaml")


def test_recipes_are_found_by_name_and_by_file(tmp_path: Path) -> None:
    assert find_recipe("mnist-vq") == find_recipe("mnist-vq.yaml") == recipes()["mnist-vq"]
    with pytest.raises(ValueError, match=r"did you mean 'mnist-vq'\?"):
        find_recipe("mnist-qv")
    for path in ("no/such/dir/mnist-vq.yaml", str(tmp_path / "mnist-vq"), "mnist-vq/"):
        with pytest.raises(ValueError, match=r"is neither a file nor a bundled recipe; did you mean 'mnist-vq'\?"):
            find_recipe(path)


@pytest.mark.parametrize("name", recipes())
def test_every_recipe_is_valid(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENAIM_DATA", "/data")
    run = parse_run(load_config(recipes()[name]), name)
    assert run.name == name
    head = recipes()[name].read_text().split("kind:")[0]
    assert all(word in head for word in ("# Result:", "# Cost:", f"# Command: genaim train {name}"))


def test_every_field_is_described() -> None:
    """The command line shows these texts."""

    def check(model: type) -> None:
        for name, field in model.model_fields.items():
            assert field.description, f"{model.__name__}.{name}"
            for part in (field.annotation, *getattr(field.annotation, "__args__", ())):
                if hasattr(part, "model_fields"):
                    check(part)

    for kind in RunConfig.__subclasses__():
        check(kind)


def test_configs_cannot_be_changed(minimal: dict) -> None:
    run = validate(RunConfig, {k: v for k, v in minimal.items() if k not in ("kind", "tokenizer")}, "x")
    with pytest.raises(ValueError, match="frozen"):
        run.steps = 5
