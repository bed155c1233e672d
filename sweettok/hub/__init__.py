"""Saved models: a folder with config.json, model.safetensors and a model card, here or on the Hugging Face Hub."""

from sweettok.hub.card import CardInfo
from sweettok.hub.pretrained import CONFIG, WEIGHTS, Pretrained, model_folder, read_config
from sweettok.hub.shipped import find_shipped, is_shipped

__all__ = ["CONFIG", "WEIGHTS", "CardInfo", "Pretrained", "find_shipped", "is_shipped", "model_folder", "read_config"]
