"""The two multimodal models that answer questions about pictures, read from local folders of transformers.

Both take a list of (pictures, text) and return one answer each, in batches, by greedy or beam search, hence always the
same. Nothing is downloaded and no code of a model folder is run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Asked = tuple[Sequence[np.ndarray], str]  # pictures uint8 [H, W, 3], text


@dataclass(frozen=True)
class ModelSettings:
    """One model and how it writes."""

    folder: Path | None = None  # of config.json, the processor's files and the weights; None: the model is not used
    batch_size: int = 8  # prompts at a time
    max_new_tokens: int = 48  # of an answer
    num_beams: int = 1  # above 1: beam search
    dtype: str = "auto"  # "float32", "bfloat16" or "float16"; auto: bfloat16 on an accelerator, float32 on a CPU

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.max_new_tokens < 1 or self.num_beams < 1:
            raise ValueError(
                "batch_size, max_new_tokens and num_beams must be at least 1, got "
                f"{self.batch_size}, {self.max_new_tokens} and {self.num_beams}"
            )
        if self.dtype not in ("auto", "float32", "bfloat16", "float16"):
            raise ValueError(f"dtype must be auto, float32, bfloat16 or float16, got {self.dtype!r}")

    def checked_folder(self) -> Path:
        """The folder; FileNotFoundError where it holds no model."""
        if self.folder is None or not (self.folder / "config.json").is_file():
            raise FileNotFoundError(
                f"{self.folder}: no model folder (config.json is missing); download the model there first, "
                "nothing is downloaded while captioning"
            )
        return self.folder


class Answerer:
    """A model with its processor; subclasses say which classes and how a prompt is laid out."""

    def __init__(self, settings: ModelSettings, device: str):
        import torch

        folder = settings.checked_folder()
        dtype = settings.dtype if settings.dtype != "auto" else ("float32" if device == "cpu" else "bfloat16")
        self.settings = settings
        self.device = device
        model_class, processor_class = self._classes()
        self.processor = processor_class.from_pretrained(folder, local_files_only=True)
        tokenizer = self.processor.tokenizer
        # What is generated must follow the text directly, so padding goes before it.
        tokenizer.padding_side = "left"
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        model = model_class.from_pretrained(folder, local_files_only=True, dtype=getattr(torch, dtype))
        self.model = model.to(device).eval()

    def answer(self, asked: Sequence[Asked]) -> list[str]:
        """One answer for each (pictures, text), in their order."""
        import torch

        answers: list[str] = []
        size = self.settings.batch_size
        for start in range(0, len(asked), size):
            inputs = self._inputs(asked[start : start + size]).to(self.device)
            for name, value in inputs.items():
                if torch.is_floating_point(value):
                    inputs[name] = value.to(self.model.dtype)
            with torch.inference_mode():
                tokens = self.model.generate(
                    **inputs,
                    max_new_tokens=self.settings.max_new_tokens,
                    num_beams=self.settings.num_beams,
                    do_sample=False,
                )
            if not self._encoder_decoder():
                tokens = tokens[:, inputs["input_ids"].shape[1] :]
            answers += [text.strip() for text in self.processor.batch_decode(tokens, skip_special_tokens=True)]
        return answers

    def _classes(self) -> tuple[Any, Any]:
        raise NotImplementedError

    def _inputs(self, asked: Sequence[Asked]) -> Any:
        raise NotImplementedError

    def _encoder_decoder(self) -> bool:
        return bool(self.model.config.is_encoder_decoder)


class Blip2Answerer(Answerer):
    """BLIP-2 (arXiv 2301.12597): short answers to a question about one picture, with OPT or T5 inside."""

    def _classes(self) -> tuple[Any, Any]:
        from transformers import Blip2ForConditionalGeneration, Blip2Processor

        return Blip2ForConditionalGeneration, Blip2Processor

    def _inputs(self, asked: Sequence[Asked]) -> Any:
        if any(len(pictures) != 1 for pictures, _ in asked):
            raise ValueError("BLIP-2 looks at one picture at a time; use frames: each or middle for its questions")
        images = [pictures[0] for pictures, _ in asked]
        texts = [text for _, text in asked]
        return self.processor(images=images, text=texts, padding=True, return_tensors="pt")

    def _encoder_decoder(self) -> bool:
        return bool(self.model.config.text_config.is_encoder_decoder)


class InstructionAnswerer(Answerer):
    """Any image-text-to-text model of transformers with a chat template (LLaVA, SmolVLM, Qwen-VL, ...)."""

    def __init__(self, settings: ModelSettings, device: str):
        super().__init__(settings, device)
        if not self.processor.chat_template:
            raise ValueError(
                f"{settings.folder}: this model has no chat template; use one tuned to follow instructions"
            )

    def _classes(self) -> tuple[Any, Any]:
        from transformers import AutoModelForImageTextToText, AutoProcessor

        return AutoModelForImageTextToText, AutoProcessor

    def _inputs(self, asked: Sequence[Asked]) -> Any:
        texts = []
        for pictures, text in asked:
            content = [*({"type": "image"} for _ in pictures), {"type": "text", "text": text}]
            chat = [{"role": "user", "content": content}]
            texts.append(self.processor.apply_chat_template(chat, add_generation_prompt=True))
        images = [list(pictures) for pictures, _ in asked]
        # The template has written the tokens that begin a text already.
        return self.processor(images=images, text=texts, padding=True, return_tensors="pt", add_special_tokens=False)
