"""Words of the captions of synthetic clips."""

import json
from pathlib import Path

# Synonyms, each group after the name used here; captions draw one of each group. Word lists of such a size give a query
# of a tokenizer enough choices.
_GROUPS = """
small little tiny mini minute petite slight compact
big large sizeable bulky hefty broad ample grand
huge giant enormous massive immense vast colossal mighty

red scarlet crimson ruby cherry vermilion cardinal maroon
orange amber tangerine apricot pumpkin rusty copper coral
yellow golden lemon canary mustard blond saffron sunny
green emerald olive lime jade mossy leafy minty
blue azure navy cobalt sapphire indigo cerulean denim
purple violet lilac plum mauve magenta lavender grape
white pale ivory pearly chalky milky snowy bleached
black dark sooty inky jet ebony charcoal raven

striped banded lined barred streaked ribbed
dotted speckled spotted flecked freckled stippled
checkered chequered mosaiced gridded latticed plaid
shaded graded tinted faded dimmed blended

circle disc ball globe orb wheel
square block box chunk cube slab
triangle wedge pyramid cone delta arrowhead
diamond rhombus kite gem crystal lozenge
cross plus crossing crossroads crucifix saltire
ring hoop band loop donut circlet
star flower asterisk blossom rosette starfish
bar plank rod beam stick strip

gravel pebbles stones rubble shingle scree
grass lawn meadow field turf pasture
stripes canvas awning fabric ribbons curtain
sand dunes beach desert shore sandbank
tiles flagstones pavement floor bricks mosaic
water waves sea lake ripples ocean
snow powder frost ice blizzard slush
wood planks timber boards oak parquet

slowly gently lazily leisurely sluggishly gradually calmly unhurriedly
smoothly evenly steadily uniformly fluidly constantly softly regularly
jerkily haltingly fitfully abruptly unevenly shakily choppily brokenly
quickly swiftly rapidly speedily hastily briskly hurriedly promptly
"""
SYNONYMS = {group.split()[0]: tuple(group.split()) for group in _GROUPS.splitlines() if group}
# What a word says of an attribute: {attribute: {word: name}}.
ATTRIBUTES = {
    attribute: {word: group.split()[0] for group in groups.splitlines() for word in group.split()}
    for attribute, groups in zip(
        ("size", "color", "pattern", "shape", "ground", "manner"), _GROUPS.strip().split("\n\n"), strict=True
    )
}


def read_attribute(path: str | Path, attribute: str) -> dict[str, str]:
    """The captions.jsonl of synthetic clips -> {key of a clip: name of its size, color, pattern, ...}."""
    names, found = ATTRIBUTES[attribute], {}
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        caption = json.loads(line)
        found.update((caption["key"], names[word]) for word, _ in caption["words"] if word in names)
    return found
