"""The nodes: schemas and a few lines that call the library."""
from .mulan_conditioning_files import MulanLoadConditioning, MulanSaveConditioning
from .mulan_encode_languages import MulanEncodeLanguages
from .mulan_loader import MulanLoader
from .mulan_prompt_inspector import MulanPromptInspector

NODES = [MulanLoader, MulanEncodeLanguages, MulanSaveConditioning, MulanLoadConditioning, MulanPromptInspector]
