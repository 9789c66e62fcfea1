"""The Q-Former's pre-training: its three masks, hard negatives, the three losses, and retrieval with re-ranking."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize, pad
from transformers import Blip2PreTrainedModel, Blip2VisionModel
from transformers import initialization as init
from transformers.models.bert.modeling_bert import BertLMPredictionHead, BertOnlyMLMHead
from transformers.models.blip_2.modeling_blip_2 import Blip2TextEmbeddings
from transformers.utils import ModelOutput

from minichat.errors import ImageError, PromptError
from minichat.model.config import PretrainingConfig
from minichat.model.loss import first_row, gather, longest, mean, rest_frozen_parts
from minichat.model.minichat import QFormerBridge
from minichat.prompt.render import IGNORED

# --- Who sees whom in the Q-Former: the three self-attention masks of BLIP-2's first stage (arXiv:2301.12597, figure
# 2).
#
# The sequence is n queries, then T words. A mask is boolean, (B, 1, n + T, n + T): its rows see its columns where it
# is True. `additive` makes of it what attention adds to its scores; a boolean one would leak, for transformers' eager
# attention would add it as 0 and 1.


def unimodal(queries: int, words: Tensor) -> Tensor:
    """The mask for contrast: queries see queries, words see words. `words` (B, T) is 1 at a word and 0 at padding."""
    from_query, to_query, to_word = _sides(queries, words)
    return torch.where(from_query, to_query, to_word)


def bidirectional(queries: int, words: Tensor) -> Tensor:
    """The mask for matching: all see all. `words` (B, T) is 1 at a word and 0 at padding."""
    from_query, to_query, to_word = _sides(queries, words)
    return (to_query | to_word).expand(-1, -1, from_query.shape[-2], -1)


def multimodal_causal(queries: int, words: Tensor) -> Tensor:
    """The mask for generation: queries see queries, a word sees them, itself and the words before. `words` (B, T)."""
    from_query, to_query, to_word = _sides(queries, words)
    length = to_word.shape[-1]
    earlier = torch.ones(length, length, dtype=torch.bool, device=words.device).tril()
    return torch.where(from_query, to_query, to_query | (to_word & earlier))


def additive(sees: Tensor, dtype: torch.dtype) -> Tensor:
    """A boolean mask → 0 where a row sees a column, and the least number of `dtype` where it does not."""
    return torch.zeros(sees.shape, dtype=dtype, device=sees.device).masked_fill(~sees, torch.finfo(dtype).min)


def _sides(queries: int, words: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Whether a row is a query (1, 1, n + T, 1), a column is one (1, 1, 1, n + T), a column is a word (B, 1, 1, n + T).

    Padding is neither.
    """
    rows, length = words.shape
    to_query = torch.arange(queries + length, device=words.device) < queries
    to_word = torch.cat([words.new_zeros(rows, queries), words], dim=1).bool()
    return to_query[None, None, :, None], to_query[None, None, None, :], to_word[:, None, None, :]


# --- Hard negatives: pictures and texts that do not belong together but might.


def hard_negatives(
    to_texts: Tensor, to_images: Tensor, own: Tensor, seed: int, places: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Draw for each text a picture that is not its own, and for each picture a text: (B,) and (B,).

    The likelier, the more alike they are. Args: pictures' logits (B, G) over all texts, texts' over all pictures,
    which are their `own`, and the places (B,) of these pairs in an order of the joined batch that does not depend on
    the processes (default: one process after the other). The noise is the order's, from a generator of its own, so
    that it draws the same however many processes share the batch. −1 where all of the batch is its own. (The Gumbel-max
    trick: argmax(scores + noise) is distributed as softmax(scores).)

    So draws LAVIS's `blip2_qformer.py` today: the softmax of the others. In its first version each had 1e-4 more.
    """
    if places is None:
        places = first_row(own) + torch.arange(len(own), device=own.device)
    everyone = gather(places)  # (G,)
    size = int(everyone.max()) + 1
    noise = torch.empty(2, size, size).exponential_(generator=torch.Generator().manual_seed(seed)).log()
    noise = noise[:, places.cpu()][:, :, everyone.cpu()]  # (2, B, G)
    scores = torch.stack([to_images, to_texts]) - noise.to(to_texts)
    pictures, texts = scores.masked_fill(own, -torch.inf).argmax(-1).where(~own.all(1), -1)
    return pictures, texts


# --- The Q-Former's own training, before any LLM: BLIP-2's first stage (arXiv:2301.12597, section 3.2).
#
# One transformer reads pictures, through learned queries, and words; three objectives train it, each with its own
# mask: image–text contrast (ITC), image–text matching (ITM) and image-grounded text generation (ITG).
#
# Shapes: B pairs of a picture and a text, G pairs of all processes, P patches, W the vision encoder's width, n
# queries, T tokens, D the Q-Former's width, E the width in which pictures and texts are compared, V the vocabulary.


_TEMPERATURES = (0.001, 0.5)  # what BLIP (arXiv:2201.12086), whose loss this is, keeps its temperature within
_AT_ONCE = 2**25  # cosines of queries and texts that are held to take the best of them: 128 MB; a batch has far fewer


@dataclass
class Stage1Losses(ModelOutput):
    """What `forward` returns. A loss is a scalar; None for an objective that does not train.

    With several processes each loss is this one's share: their mean over the processes is the joined batch's loss.
    """

    loss: Tensor | None = None  # the sum of the three
    itc: Tensor | None = None
    itm: Tensor | None = None
    itg: Tensor | None = None
    negatives: tuple[Tensor, Tensor] | None = None  # (B,) pictures and (B,) texts of the joined batch; −1 for none


class QFormerPretraining(Blip2PreTrainedModel):
    """A frozen vision encoder and the Q-Former that learns to read it, with its text branch and three heads.

    `vision_model` and `bridge` are those of `MiniChatForConditionalGeneration`, by the same names; the bridge's layers
    have a second feed-forward part, for words. `cls` and `temp` are BERT's and BLIP-2's names.
    """

    config: PretrainingConfig
    config_class = PretrainingConfig
    main_input_name = "pixel_values"
    input_modalities = ("image", "text")
    _supports_flash_attn = False  # it takes no mask but padding
    _no_split_modules = ["Blip2VisionEmbeddings", "Blip2EncoderLayer", "QFormerBridge"]
    _tied_weights_keys = {
        "cls.predictions.decoder.weight": "embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    }

    def __init__(self, config: PretrainingConfig) -> None:
        super().__init__(config)
        qformer = config.bridge_config.qformer
        self.vision_model = Blip2VisionModel(config.vision_config)
        self.vision_model.post_layernorm = nn.Identity()  # the bridge's ln_vision is in its place
        self.bridge = QFormerBridge(config.bridge_config, config.vision_config.hidden_size)
        self.embeddings = Blip2TextEmbeddings(qformer)
        self.vision_projection = nn.Linear(qformer.hidden_size, config.contrast_size)
        self.text_projection = nn.Linear(qformer.hidden_size, config.contrast_size)
        self.itm_head = nn.Linear(qformer.hidden_size, 2)
        self.cls = BertOnlyMLMHead(qformer)
        self.temp = nn.Parameter(torch.tensor(float(config.temperature)))
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, QFormerBridge):  # equal queries would stay equal for ever
            init.normal_(module.query_tokens, mean=0.0, std=self.config.initializer_range)
        elif isinstance(module, QFormerPretraining):
            init.constant_(module.temp, self.config.temperature)
        elif isinstance(module, BertLMPredictionHead):  # which Blip2PreTrainedModel does not know
            init.zeros_(module.bias)

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings.word_embeddings

    def get_output_embeddings(self) -> nn.Module:
        return self.cls.predictions.decoder

    def train(self, mode: bool = True) -> QFormerPretraining:
        """Train mode for what trains; frozen parts (see `set_trainable`) stay in eval mode."""
        super().train(mode)
        if mode:
            rest_frozen_parts(self)
        return self

    # What is read.

    def encode_patches(self, pixel_values: Tensor) -> Tensor:
        """Pictures (B, 3, S, S) → patches (B, 1 + P, W), which may be kept while the vision encoder is frozen.

        Raises `ImageError` for pixels of another shape than the vision encoder's.
        """
        side = self.config.vision_config.image_size
        if pixel_values.shape[1:] != (3, side, side):
            raise ImageError(
                f"pixel_values has the shape {tuple(pixel_values.shape)}; "
                f"this model needs (pictures, 3, {side}, {side}): use its own image processor."
            )
        if not len(pixel_values):
            vision = self.config.vision_config
            return pixel_values.new_zeros(0, 1 + (side // vision.patch_size) ** 2, vision.hidden_size)
        return self.vision_model(pixel_values=pixel_values).last_hidden_state

    def query_states(self, patches: Tensor) -> Tensor:
        """Patches (B, 1 + P, W) → what the queries have read of them (B, n, D)."""
        return self.bridge(patches) if len(patches) else self._none(self.config.bridge_config.num_query_tokens)

    def _none(self, length: int) -> Tensor:
        """States (0, length, D) of no pair at all, which transformers' attention cannot compute."""
        return self.bridge.query_tokens.new_zeros(0, length, self.config.bridge_config.qformer.hidden_size)

    def text_states(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Word pieces (B, T) that see each other, and no picture → (B, T, D)."""
        return self._read(unimodal(0, attention_mask), None, input_ids)

    def joint_states(
        self, mask: Callable[[int, Tensor], Tensor], patches: Tensor, input_ids: Tensor, attention_mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Queries (B, n, D) and words (B, T, D) that went through the Q-Former together, under a mask of `masks`."""
        n = self.config.bridge_config.num_query_tokens
        states = self._read(mask(n, attention_mask), patches, input_ids)  # (B, n + T, D)
        return states[:, :n], states[:, n:]

    def _read(self, sees: Tensor, patches: Tensor | None, input_ids: Tensor) -> Tensor:
        if (length := input_ids.shape[1]) > (most := self.embeddings.position_embeddings.num_embeddings):
            raise PromptError(f"A text has {length} word pieces, but this Q-Former reads at most {most}: cut it.")
        if not len(input_ids):
            return self._none(sees.shape[-1])
        queries = None
        if patches is not None:
            patches = self.bridge.ln_vision(patches)
            queries = self.bridge.query_tokens.expand(patches.shape[0], -1, -1)  # (B, n, D)
        return self.bridge.qformer(
            query_embeds=self.embeddings(input_ids=input_ids, query_embeds=queries),
            query_length=0 if queries is None else queries.shape[1],
            attention_mask=additive(sees, self._compute_dtype(input_ids.device)),
            encoder_hidden_states=patches,
        ).last_hidden_state

    def _compute_dtype(self, device: torch.device) -> torch.dtype:
        if torch.is_autocast_enabled(device.type):
            return torch.get_autocast_dtype(device.type)
        return self.bridge.query_tokens.dtype

    # What is compared: retrieval.

    def image_embeddings(self, patches: Tensor) -> Tensor:
        """Patches (B, 1 + P, W) → one unit vector for each query (B, n, E)."""
        return self._image_embeddings(self.query_states(patches))

    def _image_embeddings(self, queries: Tensor) -> Tensor:
        return normalize(self.vision_projection(queries).float(), dim=-1)

    def text_embeddings(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Word pieces (B, T) → a unit vector for each text, from its first token (B, E)."""
        states = self.text_states(input_ids, attention_mask)
        return normalize(self.text_projection(states[:, 0]).float(), dim=-1)

    @staticmethod
    def similarity(images: Tensor, texts: Tensor) -> Tensor:
        """Embeddings (I, n, E) and (B, E) → the cosine of each text and a picture's best query (I, B)."""
        at_once = max(1, _AT_ONCE // max(1, images.shape[1] * len(texts)))
        parts = images.split(at_once)  # COCO's 5,000 pictures and 25,000 texts would take 16 GB in one piece
        return torch.cat([torch.einsum("ine,be->ibn", part, texts).amax(-1) for part in parts])

    def match(self, patches: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Pairs of a picture and a text → logits (B, 2), index 1 for a match: the mean over the queries' answers."""
        queries, _ = self.joint_states(bidirectional, patches, input_ids, attention_mask)
        return self.itm_head(queries).float().mean(1)

    # What is learned.

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        pixel_values: Tensor | None = None,
        patches: Tensor | None = None,
        image_ids: Tensor | None = None,
        negatives: tuple[Tensor, Tensor] | None = None,
        seed: int = 0,
        places: Tensor | None = None,
    ) -> Stage1Losses:
        """The losses of B pairs, the other pairs of the joined batch being their negatives. Of several processes some
        may have no pair, B = 0.

        Args:
            input_ids, attention_mask: texts (B, T), `[CLS]` first, padded on the right.
            pixel_values, patches: their pictures (B, 3, S, S), or what `encode_patches` made of them (B, 1 + P, W).
            image_ids: (B,) which picture each is; pairs of the same picture are no negatives of each other.
            negatives: (B,) indices of the joined batch's pictures, the negative of each text, and (B,) of its texts,
                the negative of each picture. By default they are drawn.
            seed: what they are drawn with, such as the step's number. The same in all processes.
            places: (B,) each pair's place in an order of the joined batch that they are drawn by (`hard_negatives`).

        Raises `PromptError` unless there are as many pictures as texts, and `ImageError` for pixels of another shape.
        """
        if (pixel_values is None) == (patches is None):
            raise PromptError("Give the pictures once: pixel_values or patches.")
        patches = self.encode_patches(pixel_values) if pixel_values is not None else patches
        if patches is None or patches.shape[0] != input_ids.shape[0]:
            count = 0 if patches is None else patches.shape[0]
            raise PromptError(f"There are {count} pictures and {input_ids.shape[0]} texts: a pair has one of each.")
        if self.training:
            with torch.no_grad():
                self.temp.clamp_(*_TEMPERATURES)
        missing = longest(input_ids.shape[1], input_ids.device) - input_ids.shape[1]
        input_ids = pad(input_ids, (0, missing), value=self.config.bridge_config.qformer.pad_token_id)
        attention_mask = pad(attention_mask, (0, missing))

        wanted = self.config.objectives
        itc = itm = itg = None
        if "itg" in wanted:  # its queries see no word, and so they are the contrast's, too
            queries, itg = self._generation(patches, input_ids, attention_mask)
        else:
            queries = self.query_states(patches)
        if "itc" in wanted or ("itm" in wanted and negatives is None):
            to_texts, to_images, own = self._contrast(queries, input_ids, attention_mask, image_ids)
            if "itc" in wanted:
                itc = self._contrastive_loss(to_texts, to_images, own)
            if "itm" in wanted and negatives is None:
                negatives = hard_negatives(to_texts.detach(), to_images.detach(), own, seed, places)
        if "itm" in wanted and negatives is not None:
            itm = self._matching_loss(patches, input_ids, attention_mask, *negatives)
        loss = torch.stack([part for part in (itc, itm, itg) if part is not None]).sum()
        return Stage1Losses(loss=loss, itc=itc, itm=itm, itg=itg, negatives=negatives)

    def _contrast(
        self, queries: Tensor, input_ids: Tensor, attention_mask: Tensor, image_ids: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Each picture against all texts, each text against all pictures, and which of them are its own: (B, G).

        As in BLIP-2's program, what a picture or a text is compared with stands still: it learns from its own row
        alone, unless `config.compared_learn`.
        """
        images, texts = self._image_embeddings(queries), self.text_embeddings(input_ids, attention_mask)
        compared = (images, texts) if self.config.compared_learn else (images.detach(), texts.detach())
        all_images, all_texts = map(gather, compared)  # (G, n, E), (G, E)
        if image_ids is None:
            image_ids = first_row(texts) + torch.arange(texts.shape[0], device=texts.device)
        own = image_ids[:, None] == gather(image_ids)[None, :]
        return self.similarity(images, all_texts) / self.temp, self.similarity(all_images, texts).T / self.temp, own

    def _contrastive_loss(self, to_texts: Tensor, to_images: Tensor, own: Tensor) -> Tensor:
        """ITC: find the text of a picture among all texts, and the picture of a text among all pictures."""
        targets = own / own.sum(1, keepdim=True)  # a picture's texts share its probability
        smoothing = self.config.label_smoothing
        total = cross_entropy(to_texts, targets, reduction="sum", label_smoothing=smoothing)
        total = total + cross_entropy(to_images, targets, reduction="sum", label_smoothing=smoothing)
        return mean(total / 2, own.shape[0])

    def _matching_loss(
        self, patches: Tensor, input_ids: Tensor, attention_mask: Tensor, images: Tensor, texts: Tensor
    ) -> Tensor:
        """ITM: tell each pair from its text with a like picture, and its picture with a like text."""
        all_patches, all_ids, all_words = (gather(rows) for rows in (patches, input_ids, attention_mask))
        images, texts = images.to(input_ids.device), texts.to(input_ids.device)
        logits = self.match(
            torch.cat([patches, all_patches[images], patches]),
            torch.cat([input_ids, input_ids, all_ids[texts]]),
            torch.cat([attention_mask, attention_mask, all_words[texts]]),
        )  # (3 · B, 2)
        labels = torch.cat([torch.ones_like(images), IGNORED * (images < 0), IGNORED * (texts < 0)])
        return mean(cross_entropy(logits, labels, reduction="sum"), (labels >= 0).sum())

    def _generation(self, patches: Tensor, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """ITG: `[DEC]` in place of `[CLS]`, then each next word piece. The queries' states (B, n, D), and the loss."""
        input_ids = input_ids.clone()
        input_ids[:, 0] = self.config.decoder_start_token_id
        queries, words = self.joint_states(multimodal_causal, patches, input_ids, attention_mask)
        targets = input_ids.masked_fill(attention_mask == 0, IGNORED)[:, 1:]
        total = cross_entropy(
            self.cls(words[:, :-1]).float().flatten(0, 1),  # (B · (T − 1), V)
            targets.flatten(),
            reduction="sum",
            label_smoothing=self.config.label_smoothing,
        )
        return queries, mean(total, (targets >= 0).sum())


# --- Find pictures by texts and texts by pictures: contrast first, then matching re-ranks the best (arXiv:2301.12597).


def rerank(similarity: Tensor, match: Callable[[Tensor, Tensor], Tensor], k: int = 128, batch_size: int = 64) -> Tensor:
    """The candidates of each query, best first (Q, N).

    The k most similar come first, in the order of similarity + matching logit (as in lavis's `compute_sim_matrix`),
    then the rest, in the order of similarity.

    Args:
        similarity: cosines (Q, N) of queries and candidates, from `QFormerPretraining.similarity`.
        match: indices of queries (M,) and candidates (M,) → what `QFormerPretraining.match` says of the pairs (M, 2).
        k: how many candidates of a query are matched; 0 matches none.
        batch_size: pairs that are matched at once.
    """
    order = similarity.argsort(dim=1, descending=True, stable=True)  # (Q, N)
    best = order[:, :k]
    if not best.numel():
        return order
    queries = torch.arange(len(best), device=best.device)[:, None].expand_as(best)
    pairs = zip(queries.flatten().split(batch_size), best.flatten().split(batch_size), strict=True)
    with torch.no_grad():
        logits = torch.cat([match(query, candidate)[:, 1] for query, candidate in pairs])  # (Q · k,)
    scores = similarity.gather(1, best) + logits.view_as(best).to(similarity)
    reranked = best.gather(1, scores.argsort(dim=1, descending=True, stable=True))
    return torch.cat([reranked, order[:, k:]], dim=1)
