"""Where no scene can answer: greetings, who and what the model is, no picture yet, things outside the drawn world."""

from __future__ import annotations

import random

GREETING = "Hello! Show me a picture of drawn shapes and ask me about it."
WHO = "I am MiniChat, a small model that talks about pictures of drawn shapes."
CAN = "I can describe a picture of drawn shapes, and answer questions about colours, shapes, numbers and places."
THANKS = "You are welcome."
BYE = "Goodbye!"
NEED = "I need a picture for that. Please show me one."
WORLD = "I only know drawn shapes, so I cannot answer that."
NO_SUCH = "I see no {}. I only know drawn shapes."

_TALK = {
    GREETING: (
        "Hello", "Hello!", "Hi", "Hi!", "Hey", "Good morning", "Good morning!", "Good evening", "Hi there",
        "Hello MiniChat",
    ),
    WHO: (
        "Who are you?", "What are you?", "What is your name?", "Are you a human?", "Are you a robot?",
        "Who am I talking to?", "Introduce yourself.",
    ),
    CAN: (
        "What can you do?", "How can you help me?", "What do you know?", "Help", "What can I ask you?",
        "What should I ask?", "How does this work?",
    ),
    THANKS: (
        "Thanks", "Thank you", "Thank you!", "Thanks a lot!", "Great, thanks.", "Well done!", "Good job!", "Nice!",
    ),
    BYE: ("Bye", "Goodbye", "Goodbye!", "See you", "Good night", "See you later!"),
}  # fmt: skip
_OUTSIDE = (
    "Who is the president?", "What is the capital of France?", "What time is it?", "What is the weather like today?",
    "Tell me a joke.",
    "How old are you?", "What is two plus two?", "Write a program for me.", "What happened in 1969?",
    "Who wrote Hamlet?",
    "What should I cook tonight?", "Translate this into French.", "How far away is the moon?",
    "What is the meaning of life?",
    "Who painted this?", "Where was this picture taken?", "What is the news today?", "Can you drive a car?",
)  # fmt: skip
_NO_PICTURE = (
    "What is in the picture?", "Describe the picture.", "What do you see?", "How many objects are there?",
    "Where is the red star?",
    "Is there a circle?", "What colour is the background?", "Describe this image in detail.",
    "What colour is the square?",
    "Is there a blue heart in the picture?", "What is left of the ring?", "Count the stars.",
    "Tell me a story about the picture.",
    "What shape is the green object?", "Can you see the picture?", "Do you see anything?", "What is at the top left?",
)  # fmt: skip
_FOREIGN = (
    "dog", "cat", "person", "car", "house", "tree", "bird", "face", "boat", "flower", "table", "horse", "fish", "ball",
)  # fmt: skip
_FOREIGN_ASKED = (
    "Is there a {} in the picture?", "Do you see a {}?", "Where is the {}?", "What is the {} doing?",
    "What colour is the {}?",
)  # fmt: skip


def smalltalk(rng: random.Random, picture: bool = False) -> tuple[str, str]:
    """A question that needs no scene, and the reply.

    `picture`: whether one has been shown; without one, questions about a picture are answered by asking for it.
    """
    kind = rng.random()
    if kind < 0.45:
        reply, asked = rng.choice(list(_TALK.items()))
        return _casual(rng.choice(asked), rng), reply
    if kind < 0.65:
        return _casual(rng.choice(_OUTSIDE), rng), WORLD
    if picture:
        what = rng.choice(_FOREIGN)
        return _casual(rng.choice(_FOREIGN_ASKED).format(what), rng), NO_SUCH.format(what)
    return _casual(rng.choice(_NO_PICTURE), rng), NEED


def _casual(text: str, rng: random.Random) -> str:
    if rng.random() < 0.3:
        text = text.replace("colour", "color")
    return text.lower() if rng.random() < 0.15 else text.rstrip("?.!") if rng.random() < 0.1 else text
