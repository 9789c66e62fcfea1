"""The look of the page: Gradio's plain theme with the system's own fonts (nothing is fetched), and a little CSS."""

from __future__ import annotations

import gradio as gr

from minichat.web.bubbles import data_url
from minichat.web.examples import Example

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


CSS = """
footer { display: none !important; }
.gradio-container { padding: 0 !important; }
.gradio-container .main, .gradio-container .wrap { padding: 0 !important; }
main.contain { width: 100%; max-width: 1160px !important; margin: 0 auto !important;
  padding: 14px 20px 16px !important; }
#mc-title, #mc-about, #mc-scenes .block { border-width: 0 !important; background: none; padding: 0; overflow: visible; }
#mc-title .html-container, #mc-about .html-container, #mc-scenes .html-container { padding: 0; }

#mc-head { align-items: center; flex-wrap: nowrap; gap: 12px; }
#mc-title h1 { font-size: 1.25rem; line-height: 1.3; margin: 0; font-weight: 650; letter-spacing: -.01em; }
#mc-title p { margin: 0; color: var(--body-text-color-subdued); font-size: .875rem; }
#mc-title code { background: none; border: none; color: inherit; font-size: .95em; padding: 0; }
#mc-new { flex: 0 0 auto; min-width: 0; width: auto; padding: 7px 14px; border-radius: 10px; font-weight: 500;
  background: var(--block-background-fill); border: 1px solid var(--block-border-color); }
#mc-new:hover { border-color: var(--color-accent); }

#mc-body { gap: 16px; align-items: stretch; flex-wrap: nowrap; height: calc(100dvh - 100px); min-height: 420px; }
#mc-main { flex: 1 1 auto; min-width: 0 !important; gap: 12px; height: 100%; flex-wrap: nowrap; }
#mc-chat { flex: 1 1 0; min-height: 0; border-radius: 16px; }
#mc-side { flex: 0 0 300px !important; min-width: 0 !important; gap: 14px; height: 100%; overflow-y: auto;
  flex-wrap: nowrap; scrollbar-width: thin; }
#mc-side > * { flex: 0 0 auto !important; }

#mc-chat .message-content { white-space: pre-wrap; overflow-wrap: anywhere; }
#mc-chat .message-row { margin-block: 3px; }
#mc-chat .message { border-radius: 14px !important; border-width: 0; padding: 9px 14px; }
#mc-chat .message.bot { background: var(--mc-bot); }
#mc-chat .message.user { background: var(--mc-user); }
#mc-chat .message:has(.mc-picture) { background: none; padding: 0; }
#mc-chat .flex-wrap:has(.mc-picture) { border: none; background: none; box-shadow: none; }
#mc-chat .user-row .mc-picture { margin-left: auto; }
#mc-chat .edit-textarea { min-width: min(420px, 60vw); }
#mc-chat .top-panel { display: none; }  /* "New chat" does the same */
#mc-chat .message .prose { padding: 0; margin: 0; overflow: visible; }
.mc-picture { display: block; width: auto; min-width: 96px; max-width: min(100%, 300px); max-height: 184px; margin: 0;
  border-radius: 14px; }
#mc-chat .message-buttons .icon-button-wrapper { border: none; background: none; box-shadow: none; }
#mc-chat .message-buttons { opacity: .75; margin-block: 0 6px; }
#mc-chat .message-buttons:hover, #mc-chat .message-buttons:focus-within { opacity: 1; }
.mc-welcome { text-align: center; padding: 0 20px; }
.mc-welcome h2 { font-size: 1.15rem; font-weight: 600; margin: 0 0 6px; }
.mc-welcome p { color: var(--body-text-color-subdued); margin: 0 auto; max-width: 22rem; }
.form:has(#mc-box) { flex: 0 0 auto; border-radius: 16px; }
#mc-box .submit-button, #mc-box .stop-button { background: var(--primary-600); color: white; border-radius: 10px; }
#mc-box .submit-button:hover, #mc-box .stop-button:hover { filter: brightness(1.08); }

.mc-label { font-size: .8rem; font-weight: 600; color: var(--body-text-color-subdued); margin: 0; }
#mc-scenes { min-width: 0 !important; gap: 6px; }
#mc-grid { display: grid; grid-template-columns: 1fr 1fr; gap: 10px; }
#mc-grid button { display: flex; flex-direction: column; justify-content: flex-start; align-items: stretch; gap: 6px;
  min-width: 0; padding: 5px 5px 8px; text-align: left; white-space: normal; font-size: .8rem; line-height: 1.25;
  font-weight: 450; background: var(--block-background-fill); border: 1px solid var(--block-border-color);
  border-radius: 13px; }
#mc-grid button:hover { border-color: var(--color-accent); }
#mc-grid button::before { content: ""; display: block; width: 100%; aspect-ratio: 7/6; border-radius: 9px;
  background-size: cover; background-position: center; }
#mc-about p { margin: 0; color: var(--body-text-color-subdued); font-size: .8rem; line-height: 1.45; }
#mc-about strong { color: var(--body-text-color); font-weight: 600; }
#mc-settings { border-radius: 13px; }
button:focus-visible { outline: 2px solid var(--color-accent) !important; outline-offset: 2px; }

.mc-thinking { display: inline-flex; gap: 5px; align-items: center; height: 1.4em; vertical-align: middle; }
.mc-thinking i { width: 7px; height: 7px; border-radius: 50%; background: var(--body-text-color-subdued);
  animation: mc-pulse 1.2s infinite ease-in-out; }
.mc-thinking i:nth-child(2) { animation-delay: .15s; }
.mc-thinking i:nth-child(3) { animation-delay: .3s; }
@keyframes mc-pulse { 0%, 70%, 100% { opacity: .25; } 35% { opacity: 1; } }
@media (prefers-reduced-motion: reduce) { .mc-thinking i { animation: none; opacity: .6; } }

:root { --mc-bot: var(--neutral-100); --mc-user: var(--primary-100); }
.dark { --mc-bot: var(--neutral-800); --mc-user: var(--primary-900); }

/* A phone: one column. The scenes become a strip between the chat and the box; the rest comes below. */
@media (max-width: 760px) {
  main.contain { padding: 10px 10px 14px !important; }
  #mc-title p, .mc-label, #mc-scenes .block { display: none; }
  #mc-body { flex-direction: column; gap: 8px; height: auto; min-height: 0; min-width: 0; max-width: 100%; }
  #mc-main, #mc-side { display: contents; }
  #mc-main > *, #mc-side > * { width: 100%; max-width: 100%; min-width: 0 !important; }
  #mc-chat { order: 1; flex: 0 0 auto; height: calc(100dvh - 232px); min-height: 260px; }
  #mc-scenes { order: 2; }
  .form:has(#mc-box) { order: 3; }
  #mc-about { order: 4; padding: 6px 4px 0 !important; }
  #mc-settings { order: 5; }
  #mc-grid { display: flex; flex-wrap: nowrap; overflow-x: auto; scrollbar-width: none; gap: 8px; }
  #mc-grid button { flex: 0 0 auto; width: 178px; flex-flow: row nowrap; align-items: center;
    padding: 5px 8px 5px 5px; }
  #mc-grid button::before { flex: 0 0 44px; width: 44px; height: 44px; aspect-ratio: 1; }
}
"""


# Gradio gives the message box a visible label or none; a screen reader needs one. And where a picture is pasted with a
# text, or a text is dropped, Gradio leaves the text out: it is put where the cursor is.
JS = """() => {
  const box = () => document.querySelector('#mc-box textarea');
  const insert = text => { box().focus(); document.execCommand('insertText', false, text); };
  box()?.setAttribute('aria-label', 'Your message');
  document.addEventListener('paste', event => {
    const text = event.clipboardData?.getData('text');
    if (text && event.target === box() && event.defaultPrevented) insert(text);
  });
  document.addEventListener('drop', event => {
    const text = event.dataTransfer?.getData('text');
    if (text && event.target.closest?.('#mc-box') && !event.dataTransfer.files.length) insert(text);
  });
}"""


def css(examples: tuple[Example, ...]) -> str:
    """The page's style sheet, the examples' pictures in it."""
    pictures = (
        f"#mc-scene-{index}::before {{ background-image: url({data_url(example.picture(), 256)}); }}"
        for index, example in enumerate(examples)
    )
    return CSS + "\n".join(pictures)
