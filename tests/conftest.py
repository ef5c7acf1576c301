"""Fixtures that the tests share, built from the tiny components of components.py."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from components import Reference, make_pipeline
from groups import (  # noqa: F401 (hooks)
    pytest_addoption,
    pytest_collection_finish,
    pytest_configure,
    pytest_itemcollected,
    pytest_runtest_makereport,
    pytest_terminal_summary,
)

from vidrd_core import VidRDPipeline

# A background process may be started with Ctrl-C ignored; the tests that send it to themselves need it.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def pipe(tmp_path_factory: pytest.TempPathFactory) -> VidRDPipeline:
    """A whole tiny pipeline: 16x16 pixels, latents of 4x4."""
    return make_pipeline(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="session")
def model_folder(pipe: VidRDPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny pipeline as a model folder on disk."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    pipe.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session", params=["a", "c"])
def reference(request: pytest.FixtureRequest) -> Reference:
    return Reference(request.param)
