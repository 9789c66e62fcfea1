"""The look of the page: Gradio's plain theme with the system's own fonts, a style sheet, and the page's own script."""

from __future__ import annotations

from pathlib import Path

import gradio as gr

from minichat.web.examples import Example
from minichat.web.talk import data_url

FONT = ("ui-sans-serif", "system-ui", "-apple-system", "Segoe UI", "Roboto", "Noto Sans", "sans-serif")
MONO = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace")


def theme() -> gr.themes.Base:
    """Calm greys and one blue-green, in light and in dark."""
    return gr.themes.Base(
        primary_hue=gr.themes.colors.teal,
        secondary_hue=gr.themes.colors.teal,
        neutral_hue=gr.themes.colors.slate,
        radius_size=gr.themes.sizes.radius_lg,
        font=FONT,
        font_mono=MONO,
    ).set(
        body_background_fill="*neutral_50",
        body_background_fill_dark="*neutral_950",
        block_background_fill="white",
        block_background_fill_dark="*neutral_900",
        block_border_color="*neutral_200",
        block_border_color_dark="*neutral_800",
        block_shadow="none",
        block_label_text_color="*neutral_600",
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_400",
        input_background_fill="white",
        input_background_fill_dark="*neutral_900",
        slider_color="*primary_500",
        color_accent_soft="*primary_50",
        color_accent_soft_dark="*primary_950",
        border_color_accent_subdued="*primary_100",
        border_color_accent_subdued_dark="*primary_900",
    )


STATIC = Path(__file__).parent / "static"
SCRIPTS = ("chats.js", "box.js", "messages.js", "list.js", "curate.js", "page.js")


def script() -> str:
    """The page's own JavaScript, as Gradio runs it when the page is there."""
    return "() => {\n" + "\n".join((STATIC / name).read_text(encoding="utf-8") for name in SCRIPTS) + "\n}"


def css(examples: tuple[Example, ...]) -> str:
    """The page's style sheet, the examples' pictures in it."""
    pictures = (
        f"#mc-scene-{index}::before {{ background-image: url({data_url(example.picture(), 256)}); }}"
        for index, example in enumerate(examples)
    )
    return (STATIC / "page.css").read_text(encoding="utf-8") + "\n".join(pictures)
