"""From story texts to batches of tokens: the tokenizer, the encoded corpus, the order of its batches."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from jaxtyping import Bool, Int
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from tqdm.auto import tqdm

from helpers.core.files import WorkbookError, write_json, write_text
from helpers.core.stories import END_OF_TEXT


def train_tokenizer(texts: Iterable[str], vocabulary: int = 4096) -> Tokenizer:
    """Train a byte-level BPE tokenizer whose token 0 is `<|endoftext|>`.

    Source: byte-level BPE as in GPT-2 (Radford et al., 2019), trained by the `tokenizers` library.

    Raises:
        WorkbookError: the texts are too few for that many tokens.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=[END_OF_TEXT], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    if tokenizer.get_vocab_size() != vocabulary:
        what = f"The text yields only {tokenizer.get_vocab_size()} tokens"
        raise WorkbookError(f"{what}: give more text or ask for a vocabulary of that size.")
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: str | Path, context: int) -> None:
    """Write `tokenizer.json` and `tokenizer_config.json` the way `transformers` reads them."""
    write_text(Path(folder) / "tokenizer.json", tokenizer.to_str())
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": context}
    settings |= {f"{kind}_token": END_OF_TEXT for kind in ("bos", "eos", "unk")}
    write_json(Path(folder) / "tokenizer_config.json", settings)


class Corpus:
    """Encoded stories in one flat tensor; story i is `tokens[starts[i]:starts[i + 1]]`, `<|endoftext|>` at both ends."""

    def __init__(self, tokens: Int[Tensor, " total"], starts: Int[Tensor, " stories_plus_one"], characters: int):
        self.tokens, self.starts, self.characters = tokens, starts, characters

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, i: int) -> Int[Tensor, " length"]:
        return self.tokens[self.starts[i] : self.starts[i + 1]]

    @property
    def lengths(self) -> Int[Tensor, " stories"]:
        return self.starts.diff()


def encode_corpus(texts: Iterable[str], tokenizer: Tokenizer, context: int, progress: str | None = None) -> Corpus:
    """Encode texts in one pass, each cut to `context` tokens with its `<|endoftext|>` in front.

    `characters` counts the characters that the kept tokens (without `<|endoftext|>`) spell.
    """
    end = tokenizer.token_to_id(END_OF_TEXT)
    pieces, starts, characters = [], [0], 0
    for text in tqdm(texts, desc=progress, disable=progress is None, unit=" stories", delay=1):
        encoding = tokenizer.encode(text)
        ids = [end, *encoding.ids, end][:context]
        characters += encoding.offsets[min(len(encoding.ids), context - 1) - 1][1]
        pieces.append(torch.tensor(ids, dtype=torch.int32))
        starts.append(starts[-1] + len(ids))
    return Corpus(torch.cat(pieces), torch.tensor(starts), characters)


def batch_order(lengths: Int[Tensor, " stories"], tokens: int, seed: int, epoch: int) -> list[list[int]]:
    """Story numbers of each batch of one epoch, a pure function of its arguments.

    Stories are shuffled, sorted by length within pools of 2,000 (little padding), cut into batches of at most
    `tokens` padded positions, and the batches shuffled.
    """
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    order = torch.randperm(len(lengths), generator=generator)
    length, batches = lengths.tolist(), []
    for pool in order.split(2000):
        batch: list[int] = []
        for i in sorted(pool.tolist(), key=length.__getitem__):
            if batch and (len(batch) + 1) * length[i] > tokens:
                batches.append(batch)
                batch = []
            batch.append(i)
        batches.append(batch)
    return [batches[i] for i in torch.randperm(len(batches), generator=generator)]


def pad(
    stories: list[Int[Tensor, " length"]],
) -> tuple[Int[Tensor, "story pos"], Bool[Tensor, "story pos_minus_one"]]:
    """Stack stories, padding at the end; the mask is true where position p predicts a real token at p + 1."""
    rows = torch.nn.utils.rnn.pad_sequence(stories, batch_first=True).long()
    lengths = torch.tensor([len(story) for story in stories])
    return rows, torch.arange(1, rows.shape[1]) < lengths[:, None]


def epochs(corpus: Corpus, tokens: int, seed: int, skip: int = 0) -> Iterator[tuple[int, list[int]]]:
    """Endless (step, story numbers) pairs, epoch after epoch, leaving out the first `skip` steps."""
    step = epoch = 0
    while True:
        for batch in batch_order(corpus.lengths, tokens, seed, epoch):
            step += 1
            if step > skip:
                yield step, batch
        epoch += 1
