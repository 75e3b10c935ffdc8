"""Any-to-any in one call."""

from omnidiff_lite.pipeline.answers import Answer
from omnidiff_lite.pipeline.requests import RequestError
from omnidiff_lite.pipeline.settings import AnswerLengths, SystemSettings
from omnidiff_lite.pipeline.system import OmniDiffusion, default_checkpoint, settings_of

__all__ = ["Answer", "AnswerLengths", "OmniDiffusion", "RequestError", "SystemSettings", "default_checkpoint",
           "settings_of"]
