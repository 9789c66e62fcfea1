"""Every error that MiniChat raises on purpose.

Each message is a sentence for a person: what is wrong, where, and how to mend it. Command line and web page print the
message alone; only an error that is *not* one of these is a defect and deserves a traceback.
"""

from __future__ import annotations


class MiniChatError(Exception):
    """Base of all errors that a person can mend."""


class ImageError(MiniChatError):
    """A picture cannot be opened safely."""


class PromptError(MiniChatError):
    """A conversation, a template, or the number of image slots is not what it must be."""


class SettingsError(MiniChatError):
    """A setting is out of range; the message names the field."""


class ModelError(MiniChatError):
    """A model cannot be loaded, or its parts do not belong together."""


class ContextError(MiniChatError):
    """A request does not fit into the model's context."""


class DataError(MiniChatError):
    """A record of a data set is malformed; the message names file and line."""
