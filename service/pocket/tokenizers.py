"""The tokenizers stage: CLIP's byte-level BPE with a vocabulary just large enough for the world.

Ids as in CLIP: 512 byte units first ("!" is 0), then merges, the start and last the end token.
Words of the world, and the spare ones, are single tokens; anything else falls back to pieces.
"""

import json
import shutil
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from transformers import CLIPTokenizer

from . import world

MAX_TOKENS = 77
START, END, END_OF_WORD = "<|startoftext|>", "<|endoftext|>", "</w>"
PAD = {"tokenizer": END, "tokenizer_2": "!"}
"""What each tokenizer fills up with, as in SDXL."""


def vocabulary_words() -> list[str]:
    """Every word that must be a single token, in alphabetical order."""
    phrases = [
        *world.COLOURS,
        *world.SHAPES,
        *world.STYLES,
        *world.DEFECTS,
        *world.VAGUE_DEFECTS,
        *world.PRAISE,
        *world.RADIUS_PX,
        *(phrase for phrases in world.SYNONYMS.values() for phrase in phrases),
        *world.SPARE_WORDS,
        *world.NOISE_WORDS,
        "a an on in at with against background photo picture image of the shape",
        "noisy blurred blur round flat worst best",
    ]
    words = {word for phrase in phrases for word in phrase.replace("-", " ").split()}
    return sorted(word for word in words if word.isalpha())


def write_tokenizers(out: Path) -> None:
    """Write `tokenizer` and `tokenizer_2` into the folder `out`, vocab.json and merges.txt included."""
    vocabulary, merges = _learn_merges(vocabulary_words())
    with TemporaryDirectory() as folder:
        vocab_file, merges_file = Path(folder) / "vocab.json", Path(folder) / "merges.txt"
        vocab_file.write_text(json.dumps(vocabulary, ensure_ascii=False))
        merges_file.write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
        for name, pad in PAD.items():
            tokenizer = CLIPTokenizer(
                vocab=str(vocab_file), merges=str(merges_file), pad_token=pad, model_max_length=MAX_TOKENS
            )
            tokenizer.save_pretrained(out / name)
            # transformers 5 saves tokenizer.json alone; other tools look for the two classic files.
            shutil.copy(vocab_file, out / name)
            shutil.copy(merges_file, out / name)


def _learn_merges(words: list[str]) -> tuple[dict[str, int], list[str]]:
    """Vocabulary and merges that make each of `words` one token: most frequent pair first, then by letter.

    Byte-pair encoding (Sennrich et al., arXiv:1508.07909); the usual trainer breaks ties at random.
    """
    spelt = [[*word[:-1], word[-1] + END_OF_WORD] for word in words]
    merges: list[tuple[str, str]] = []
    while pairs := Counter(pair for symbols in spelt for pair in pairwise(symbols)):
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        spelt = [_joined(symbols, best) for symbols in spelt]
    units = list(_byte_units())
    tokens = [*units, *(unit + END_OF_WORD for unit in units), *(a + b for a, b in merges), START, END]
    return {token: i for i, token in enumerate(dict.fromkeys(tokens))}, [" ".join(pair) for pair in merges]


def _joined(symbols: list[str], pair: tuple[str, str]) -> list[str]:
    """`symbols` with every neighbouring `pair` joined, from left to right."""
    joined: list[str] = []
    for symbol in symbols:
        if joined and (joined[-1], symbol) == pair:
            joined[-1] += symbol
        else:
            joined.append(symbol)
    return joined


def _byte_units() -> Iterator[str]:
    """GPT-2's printable stand-ins for the 256 bytes, printable bytes first, so that "!" comes first."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    yield from map(chr, printable)
    yield from map(chr, range(256, 256 + 256 - len(printable)))


def load_tokenizers(folder: Path) -> tuple[CLIPTokenizer, CLIPTokenizer]:
    """The two tokenizers that `write_tokenizers` wrote into `folder`."""
    return CLIPTokenizer.from_pretrained(folder / "tokenizer"), CLIPTokenizer.from_pretrained(
        folder / "tokenizer_2"
    )


def token_ids(tokenizer: CLIPTokenizer, captions: list[str]) -> torch.Tensor:
    """Token ids of `captions`, (B, 77), filled up or cut to 77."""
    return tokenizer(
        captions, padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt"
    ).input_ids


def padded_for_encoder_2(ids: torch.Tensor, end_id: int) -> torch.Tensor:
    """The ids (B, 77) of the first tokenizer as the second gives them: zeros after the first end token."""
    first_end = (ids == end_id).int().argmax(1, keepdim=True)
    return torch.where(torch.arange(ids.shape[1], device=ids.device) > first_end, 0, ids)
