"""The MuLan and InternVL nodes. Not in `__init__`: `common` must be importable without them."""

from .internvl_captions import InternVLImagesToCaption, InternVLSaveCaptions
from .internvl_chat import InternVLChat
from .internvl_chat_loader import InternVLChatLoader
from .internvl_classify import InternVLZeroShotClassify
from .internvl_embed import InternVLCompare, InternVLEmbed
from .internvl_loader import InternVLLoader
from .internvl_rank import InternVLRank
from .internvl_video import InternVLVideoClassify
from .mulan_conditioning_files import MulanLoadConditioning, MulanSaveConditioning
from .mulan_encode_languages import MulanEncodeLanguages
from .mulan_get_model import MulanGetModel
from .mulan_loader import MulanLoader
from .mulan_prompt_inspector import MulanPromptInspector
from .mulan_tiny_models import MulanTinyModels
from .mulan_word_maps import MulanWordMaps

NODES = [
    MulanGetModel,
    MulanLoader,
    MulanTinyModels,
    MulanEncodeLanguages,
    MulanSaveConditioning,
    MulanLoadConditioning,
    MulanPromptInspector,
    MulanWordMaps,
    InternVLLoader,
    InternVLZeroShotClassify,
    InternVLRank,
    InternVLEmbed,
    InternVLCompare,
    InternVLVideoClassify,
    InternVLChatLoader,
    InternVLChat,
    InternVLImagesToCaption,
    InternVLSaveCaptions,
]
