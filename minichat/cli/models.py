"""`minichat new`, `convert`, `export`, `models` and `doctor`: folders of models, and what this machine can run."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from minichat.cli.options import commands
from minichat.device import Precise

app = commands()
catalogue = commands(no_args_is_help=False)  # `minichat models …`


class Format(StrEnum):
    projection = "projection"
    blip2 = "blip2"
    minichat = "minichat"
    llm = "llm"


class Bridge(StrEnum):
    qformer = "qformer"
    patch_merge = "patch_merge"
    pool = "pool"


@app.command()
def new(
    vision: Annotated[
        str, typer.Option("--vision", help="Eyes: a CLIP, SigLIP, DINO, BLIP-2 or MiniChat; a folder, hub id or name.")
    ],
    llm: Annotated[str, typer.Option("--llm", help="The LLM: a Hugging Face folder, a GGUF file, a hub id or name.")],
    out: Annotated[Path, typer.Option("--out", help="A new folder.")],
    bridge: Annotated[
        Bridge | None,
        typer.Option("--bridge", help="How patches become tokens; default: the vision's Q-Former, or patch_merge."),
    ] = None,
    template: Annotated[
        str | None,
        typer.Option("--template", help="A prompt template, by name or as a YAML file; default: the LLM's own."),
    ] = None,
    image_size: Annotated[int | None, typer.Option(help="Side of the pictures; default: what the vision has.")] = None,
    vision_layers: Annotated[
        int | None, typer.Option(help="Blocks of the vision to use; default: all, of CLIP's all but one.")
    ] = None,
    merge: Annotated[bool, typer.Option("--merge", help="Copy the LLM in; otherwise it is referred to.")] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Record hashes of all weights, to be checked later.")
    ] = False,
) -> None:
    """Join any two frozen models by a projection that is new, for `minichat train` to begin with."""
    from minichat.weights.convert import convert as make
    from minichat.weights.projection import vision_source

    make(
        out,
        blip2=vision_source(vision),
        llm=llm,
        bridge=None if bridge is None else bridge.value,
        template=template,
        image_size=image_size,
        vision_layers=vision_layers,
        merge=merge,
        verify=verify,
        progress=_said,
    )
    typer.echo(f"The model is in {out}. Its projection is random: train it.", err=True)


def _said(message: str) -> None:
    typer.echo(f"{message} ...", err=True)


@app.command()
def convert(
    out: Annotated[Path, typer.Option("--out", help="A new folder.")],
    llm: Annotated[
        str | None,
        typer.Option(
            "--llm", help="The LLM: a Hugging Face folder, a GGUF file, a hub id, a known name; none: --blip2's."
        ),
    ] = None,
    template: Annotated[
        str | None,
        typer.Option(
            "--template", help="Prompt template: vicuna-v0, ...; none: BLIP-2's, or the LLM's own chat_template."
        ),
    ] = None,
    tokenizer: Annotated[
        Path | None,
        typer.Option("--tokenizer", help="BERT's folder, of InstructBLIP; without LLM: --qformer is kept as stage 1."),
    ] = None,
    projection: Annotated[
        Path | None,
        typer.Option("--projection", help="What MiniGPT-4 or LAVIS saved (.pth); none: a random one, to be trained."),
    ] = None,
    vit: Annotated[Path | None, typer.Option("--vit", help="EVA's ViT as published (eva_vit_g.pth).")] = None,
    qformer: Annotated[
        Path | None, typer.Option("--qformer", help="BLIP-2's Q-Former as published; none: patches are joined.")
    ] = None,
    blip2: Annotated[
        str | None, typer.Option("--blip2", help="Instead: a Hugging Face BLIP-2 or InstructBLIP, or a MiniChat model.")
    ] = None,
    no_qformer: Annotated[
        bool, typer.Option("--no-qformer", help="Take the ViT alone from --blip2; patches are joined.")
    ] = False,
    merge: Annotated[bool, typer.Option("--merge", help="Copy the LLM in; otherwise it is referred to.")] = False,
    vision_heads: Annotated[int | None, typer.Option(help="Attention heads of the ViT; as published: 16.")] = None,
    vision_layers: Annotated[int | None, typer.Option(help="Blocks of the ViT to use; as published: 39.")] = None,
    qformer_heads: Annotated[
        int | None, typer.Option(help="Attention heads of the Q-Former; as published: 12.")
    ] = None,
    image_size: Annotated[int | None, typer.Option(help="Side of the pictures; default: what the ViT has.")] = None,
    instruction_tokens: Annotated[
        int | None, typer.Option(help="Word pieces of a question that InstructBLIP's Q-Former reads; default: 128.")
    ] = None,
    lora_alpha: Annotated[
        float | None, typer.Option(help="Of MiniGPT-v2's LoRA; default: what --projection says.")
    ] = None,
    tidy: Annotated[
        bool, typer.Option("--tidy", help="Read QUESTIONS  IN CAPITALS, and in small letters, in sentence case.")
    ] = False,
    allow_unused: Annotated[
        list[str] | None, typer.Option("--allow-unused", help="Leave out unknown tensors of this name (a glob).")
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Record hashes of all weights, to be checked later.")
    ] = False,
) -> None:
    """Make a model's folder from published MiniGPT-4, BLIP-2 and InstructBLIP weights."""
    sizes: dict[str, Any] = {
        "vit": vit,
        "vision_heads": vision_heads,
        "vision_layers": vision_layers,
        "qformer_heads": qformer_heads,
        "image_size": image_size,
        "allow_unused": allow_unused or (),
    }
    if tokenizer is not None and projection is None and blip2 is None:
        others = (llm, template, no_qformer, merge, verify, instruction_tokens, lora_alpha, tidy)
        if qformer is None or any(others):
            raise typer.BadParameter("--tokenizer keeps a stage 1 of --qformer and --vit, and takes no other part.")
        from minichat.weights.qformer import convert_stage1

        convert_stage1(out, qformer, tokenizer=tokenizer, **sizes)
        typer.echo(f"The stage-1 model is in {out}.", err=True)
        return
    if llm is None and blip2 is None:
        raise typer.BadParameter("give --llm; or --tokenizer for what BLIP-2's first stage saved.")
    from minichat.weights.convert import convert as make
    from minichat.weights.projection import vision_source

    make(
        out,
        projection=projection,
        llm=llm,
        template=template,
        qformer=qformer,
        tokenizer=tokenizer,
        instruction_tokens=instruction_tokens,
        lora_alpha=lora_alpha,
        tidy=tidy,
        blip2=None if blip2 is None else vision_source(blip2),
        bridge="patch_merge" if no_qformer else None,
        merge=merge,
        verify=verify,
        progress=_said,
        **sizes,
    )
    typer.echo(f"The model is in {out}.", err=True)


@app.command()
def export(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A known name, a folder, or a hub id.")],
    form: Annotated[
        Format,
        typer.Option(
            "--format",
            help="projection: the trained part; blip2: for plain transformers; minichat: all in one; llm: the LLM.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="A new folder.")],
    verify: Annotated[
        bool, typer.Option("--verify", help="Record hashes of all that the projection belongs to, to be checked later.")
    ] = False,
    dtype: Annotated[
        Precise | None, typer.Option("--dtype", help="Of a minichat, or of a projection's adapter; default: as stored.")
    ] = None,
    without_llm: Annotated[
        bool,
        typer.Option("--without-llm", help="Of a minichat: refer to its LLM as the model does, in a small folder."),
    ] = False,
    adapter: Annotated[
        Path | None, typer.Option("--adapter", help="Of a projection: a PEFT folder, in place of the model's adapter.")
    ] = None,
) -> None:
    """Write a model's trained projection, the whole model in one folder or for other programs, or its LLM."""
    from minichat.weights.export import export as write

    write(model, form.value, out, verify, dtype, without_llm, adapter)
    typer.echo(f"It is in {out}.", err=True)


@catalogue.callback(invoke_without_command=True)
def models(
    ctx: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="A line of JSON for each model; sizes in bytes.")] = False,
) -> None:
    """List what can be loaded by name: parts, licences, sizes, memory, and whether it is here."""
    if ctx.invoked_subcommand is not None:
        return
    from minichat.weights.registry import catalogue, hint

    for entry in catalogue():
        typer.echo(json.dumps(entry.as_dict()) if as_json else f"{entry}\n")
    typer.echo(hint(), err=True)


@catalogue.command()
def fetch(names: Annotated[list[str], typer.Argument(metavar="NAME...", help="Known names.")]) -> None:
    """Fetch models, or LLMs to build on, so that they are here when they are needed."""
    from minichat.weights.registry import fetch_named

    for name in names:
        fetch_named(name)
        typer.echo(f"{name} is here.", err=True)


@app.command()
def doctor(
    model: Annotated[
        str | None, typer.Option("--model", help="A known name, a folder, or a hub id; default: all known names.")
    ] = None,
    context: Annotated[int, typer.Option("--context", help="Tokens of a conversation, pictures included.")] = 2048,
    batch: Annotated[int, typer.Option("--batch", help="Conversations at once.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON; sizes in bytes.")] = False,
) -> None:
    """Say what this machine can run: its memory, what each model needs of it, and which flags to use."""
    from minichat.inference.doctor import examine

    report = examine(model, context=context, batch=batch)
    typer.echo(json.dumps(report.as_dict(), indent=2) if as_json else str(report))
