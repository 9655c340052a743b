"""Words of the generated look-up text, and the dice that draws them.

    NAMES ──┐                       people() ─┐
    THINGS ─┼─ + adjectives, made-up ─ things() ─┼─> families (lookup_*.py)
    PLACES ─┘   words, numbers        places() ─┘

The lists are long, and every draw may swap a word for a made-up one, so that a model cannot answer by remembering
which thing usually lies where: it has to copy from the passage. Words that public evaluation sets lean on are kept
out here (RESERVED), once, so that no family has to think of them.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from typing import TypeVar

__all__ = ["ADJECTIVES", "BOXES", "NAMES", "PLACES", "RESERVED", "THINGS", "Dice", "a", "plural", "joined"]

T = TypeVar("T")

NAMES = """Ada Adela Agnes Aino Akira Alba Aldo Alma Alvar Amara Amos Anca Andrea Anil Anja Anouk Anselm Anton Anwen
Arda Aria Arne Asha Asta Astrid Aurel Axel Aylin Azra Bahar Barnaby Bastian Beata Beatriz Benno Berit
Berta Birgit Bodil Bogdan Boris Branka Brenna Bruno Cai Caleb Camille Carla Caspar Cecil Celia Chandra
Chiara Ciaran Clara Claude Clemens Conrad Cora Cyrus Dagny Damir Danika Dario Dilip Dina Ditte Dora Dorin
Dragan Duncan Edda Edgar Edith Edwin Eero Eira Elias Elif Elke Ellen Elmar Elsa Emeka Emil Enid Enzo Erik
Esra Estelle Esther Etta Eudora Ewan Fabian Farah Faye Felix Fenna Fergus Fiona Flora Floris Frida Gareth
Gaspar Gemma Georg Gerda Gilda Gino Gisela Goran Greta Gudrun Gunnar Gwen Hakan Halima Hamid Hanna Harald
Hassan Hedda Heidi Helga Henrik Hermann Hilda Hiro Horst Hugo Ida Idris Ilse Imani Imre Ines Inga Ingrid
Ioana Irina Irma Isak Ismael Ivana Ivo Izumi Jana Janek Jarek Jasmin Joanna Joel Jonas Joris Josef Judit
Jun Juna Jutta Kadir Kaito Kalle Kamal Karin Kasia Katya Keiko Kemal Kenji Kerstin Kiran Klara Klaus Knut
Konrad Lara Lars Lasse Laszlo Leif Leila Lena Leon Leonie Levin Liam Linnea Lorenz Lotte Luca Lucia
Ludwig Luisa Lukas Lydia Maarten Mads Magda Magnus Maja Malik Malin Manuel Mara Marek Margit Marius Marko
Marta Matteo Maud Max Mehmet Meike Mercy Merle Mikkel Mila Milan Milo Mina Mira Miriam Mona Morten Nadia
Naomi Nathan Nela Nia Nico Nils Nina Noah Noor Nora Odile Ola Olaf Oleg Olga Oliver Omar Orla Oscar Osman
Otis Otto Paloma Paola Pascal Paula Pavel Pedro Pelle Petra Philip Pia Piet Priya Quentin Rafael Ragnar
Rahel Rajiv Ramona Rasmus Raul Renata Rhys Rita Robin Rolf Romy Rosa Rowan Ruben Rufus Runa Ruth Sabine
Salim Samir Sanna Sara Sasha Selma Senta Severin Signe Silas Silvia Simon Siri Sofia Soren Stella Stepan
Stina Sunniva Sven Svea Tadeo Taina Tamar Tanvi Tarek Tekla Teresa Thea Theo Thora Tilda Tilo Timur
Tobias Tomas Tora Tove Tristan Tuva Ulla Ulrich Umar Ursula Vadim Valentin Valerie Vera Veronika Viggo
Viktor Vilma Vincent Viola Wanda Wendel Werner Wilma Xaver Yara Yasmin Yorick Yuki Yusuf Zahra Zelda Zeno
Zofia Zora""".split()

THINGS = """accordion almanac anchor anvil apron arrow atlas awl axe badge bagpipe ball banjo banner barometer basin
bead bell bellows bench binder blanket blotter bobbin bolt bonnet bookmark boot bottle bow bowl bracelet
brick bridle broom brush bucket buckle buoy button cable cake calendar candle cane canteen canvas cape
card carpet cartridge chain chalk chart chisel clamp cleaver cloak clock clog coat coin comb compass cone
cork cornet corset cot cowbell crayon crowbar crown cup curtain cushion cymbal dagger decanter diary dish
doll doorknob drill drum dumpling earring easel emerald envelope eraser fan feather fiddle file flag
flask float flute fork fossil funnel gauge gavel gear glass globe glove goblet gong grater guitar hairpin
hammer hammock handbell handkerchief harness harp hat hatchet hinge hoe honeycomb hood hook horn
horseshoe hourglass inkwell iron jacket jigsaw journal joystick jug kettle key kite knapsack knife ladder
ladle lamp lance lantern lasso ledger lens letter lever lid locket loom lute magnet mallet manual map
marble mask mat medal melon microscope mirror mitten mop mug napkin necklace needle net newspaper
notebook nutcracker oar oilcan opal ornament padlock paddle paintbrush painting pamphlet pan parasol
parcel passport pear pearl peg pen pencil pendant pennant photograph pickaxe pillow pin pipe pitcher
plane plank plate plum pole postcard pot pretzel prism puppet purse puzzle quill quilt racket radio raft
rake rattle razor receipt recipe reel ribbon ring rope rudder rug ruler saddle sail sandal saucepan saw
scale scarf screwdriver scroll scythe seal seashell shawl shovel sickle sieve skate skillet sledge
slipper snowshoe sock spade spanner spatula spear spindle sponge spool spoon spring stamp statue stencil
stool stopwatch strap sundial sword syringe tambourine tankard tape tassel teapot telescope tent
thermometer thimble ticket tile toboggan torch towel tray trident trombone trowel trumpet turnip
typewriter umbrella urn valve vase veil vest vial violin visor walnut watch wheel whetstone whisk whistle
wig wrench wreath xylophone yoke zipper zither""".split()

PLACES = """abbey academy airfield aqueduct arcade archive armoury atelier aviary bakery balcony ballroom
bandstand bank barn barracks bathhouse bay beach beacon belfry boathouse bookshop brewery
brickyard bridge bus-stop cabin camp canal canteen-hut castle cathedral cave cellar chapel cheese-shop
church clearing clinic cliff clubhouse cloakroom cloister coal-yard corral cottage courthouse courtyard
cove creek crossroads customs-house dairy dam deck depot dock dome dovecote dyke embassy estuary
fairground farm ferry-landing fish-market ford forge fort fountain foundry gallery gate gatehouse glade
granary greenhouse grove guardhouse guesthouse guildhall gully gym hangar harbour hayloft henhouse hill
hospital hostel hotel inn island jetty kennels kiln knoll laboratory lagoon lake laundry library
lighthouse lock lodge log-cabin loft lookout lumberyard manor market marsh meadow mill mine moat
monastery moor mountain-hut museum nursery observatory orchard outpost paddock palace parlour pasture
pavilion pharmacy pier plaza pond pottery printworks pump-room quarry quay racecourse ranch refinery
reservoir ridge river-bank ropewalk ruin sawmill schoolhouse shed shipyard shore shrine signal-box smithy
smokehouse spring-house stable stadium station stream studio summit surgery tailor-shop tannery
tavern temple terrace theatre toll-house tower town-hall tunnel valley vault veranda village vineyard
wagon-shed walled-town warehouse waterfall weir wharf windmill winery woodshed workshop yard zoo""".split()
PLACES = [place.replace("-", " ") for place in PLACES]

BOXES = """barrel basket bin bucket cabinet carton case cask casket coffer crate cupboard drawer folder hamper
hatbox holdall hutch jar locker pail pannier pocket pouch rucksack sack satchel tin toolbox trough trunk
tub vat wallet wardrobe wheelbarrow""".split()
THINGS = [thing for thing in THINGS if thing not in set(BOXES)]

ADJECTIVES = """amber ancient bent black blue brass broken bronze brown carved chipped copper cracked crooked dented
dusty empty faded flat folded golden green grey heavy ivory large light long muddy narrow new old orange
oval painted pale patched plain polished purple red round rusty scarlet shiny short silver small smooth
spare spotted square striped tall thick thin tiny torn velvet violet white wide wooden worn yellow""".split()

RARE = """alcove amulet apricot argon barnacle basalt beeswax bergamot bramble brine burdock cadence calico caraway
cedar chicory cinder clover cobalt comet coriander cowslip damson dapple delta dill dusk ember fennel
ferrule filbert flint foxglove gable gale garnet gherkin ginger granite gravel gypsum hazel heather
hickory indigo ivy jade jasper juniper kelp larch lichen linden linseed loam lupin magma maple marl
medlar mica moss mustard myrtle nettle nimbus oak oat obsidian onyx osier paprika parsley peat pebble
pepper pewter plaster poplar quartz quince resin rosemary rowan rye saffron sage sandstone sapphire shale
sienna silt slate sorrel spelt sprig spruce starling stork sumac tallow talon tansy teal thicket thistle
thyme tin topaz tulip tundra turf umber vanilla vetch walnut willow yarrow yew zinc""".split()

# Words that public evaluation sets lean on (bAbI above all); no family may use them, and made-up words avoid them.
RESERVED = frozenset(
    """mary john sandra daniel fred bill jeff julie jason antoine sumit yann lily bernhard greg brian julius winona
    jessica emily gertrude bathroom bedroom kitchen hallway garden office school park cinema football apple milk
    pink rectangle triangle suitcase chocolate chocolates mouse mice wolf wolves cat cats sheep lion frog rhino
    swan journeyed discarded treasure afraid wazzup dax lug zup blicket""".split()
)

_STARTS = """b bl br c ch cl cr d dr f fl fr g gl gr h j k kl kr l m n p pl pr qu r s sh sk sl sm sn sp st str t
th tr v w y z""".split()
_COMMON = frozenset("then than that this them thus with from been seen said near soon took must just such till".split())
_RUDE = re.compile(
    "shit|slut|cock|dick|tit$|tits|crap|pis|fag|rap[eio]?$|cunt|fuck|turd|coon|gook|spic|nig|porn|wank|skank|sex|prick|slag"
    "|jap|poof|shag|spaz|spunk|cum|dyk|kik|naz|nat?zi|suck|twat|bum$|fart|whor|hoar|wog|paki|gaz"
)
_VOWELS = "a a e e i i o o u ai ea ee oa oo ou".split()
_ENDS = "b ck d f g k l lm ln lt m mp n nd nk nt p r rd rk rn rt s sh sk sp st t th v x z".split()
_IRREGULAR = {"knife": "knives", "scarf": "scarves", "dice": "dice", "shelf": "shelves", "loaf": "loaves"}


def a(word: str) -> str:
    """Returns the word behind its indefinite article ("an oar", "a kite")."""
    vowel = word.startswith("hour") or (word[0] in "aeiou" and not word.startswith(("eu", "uni", "uku")))
    return ("an " if vowel else "a ") + word


def plural(noun: str) -> str:
    """Returns the plural of a noun of these lists ("brushes", "knives")."""
    last = noun.rsplit(" ", 1)[-1]
    if last in _IRREGULAR:
        return noun[: len(noun) - len(last)] + _IRREGULAR[last]
    if last.endswith(("s", "x", "z", "ch", "sh")):
        return noun + "es"
    if last.endswith("y") and last[-2] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + "s"


def joined(items: Sequence[str], last: str = " and ") -> str:
    """Returns "x", "x and y" or "x, y and z"."""
    return items[0] if len(items) == 1 else ", ".join(items[:-1]) + last + items[-1]


class Dice(random.Random):
    """A seeded generator with the few draws the families need, each much faster than the standard ones.

    `style` is a number in [0, 1) or None: while it is set, `held` always draws the same choice, so that the solved
    examples of a few-shot document are all worded alike.
    """

    style: float | None = None

    def pick(self, options: Sequence[T]) -> T:
        return options[int(self.random() * len(options))]

    def held(self, options: Sequence[T]) -> T:
        return options[int((self.random() if self.style is None else self.style) * len(options))]

    def between(self, low: int, high: int) -> int:
        return low + int(self.random() * (high - low + 1))

    def chance(self, share: float) -> bool:
        return self.random() < share

    def some(self, options: Sequence[T], count: int) -> list[T]:
        """Draws `count` different options."""
        found: list[T] = []
        while len(found) < count:
            one = options[int(self.random() * len(options))]
            if one not in found:
                found.append(one)
        return found

    def mixed(self, items: Sequence[T]) -> list[T]:
        order = list(items)
        self.shuffle(order)
        return order

    def made_up(self) -> str:
        """Draws a word that no dictionary has ("telvask"); never a reserved one."""
        while True:
            word = self.pick(_STARTS) + self.pick(_VOWELS)
            if self.random() < 0.6:
                word += self.pick(_ENDS)[0] + self.pick(_VOWELS)[0]
            word += self.pick(_ENDS)
            if len(word) > 3 and word not in RESERVED and word not in _COMMON and not _RUDE.search(word):
                return word

    def made_ups(self, count: int) -> list[str]:
        found: list[str] = []
        while len(found) < count:
            word = self.made_up()
            if word not in found:
                found.append(word)
        return found

    def people(self, count: int) -> list[str]:
        found = self.some(NAMES, count)
        if self.random() < 0.25:
            name = self.made_up().capitalize()
            if name not in NAMES:
                found[self.between(0, count - 1)] = name
        return found

    def things(self, count: int) -> list[str]:
        found = self.some(THINGS, count)
        luck = self.random()
        if luck < 0.25:
            return [self.pick(ADJECTIVES) + " " + thing for thing in found]
        if luck < 0.33:  # same thing, told apart only by its adjective
            return [word + " " + found[0] for word in self.some(ADJECTIVES, count)]
        if luck < 0.45:
            found[self.between(0, count - 1)] = self.made_up()
        return list(dict.fromkeys(found)) if len(set(found)) == count else self.things(count)

    def places(self, count: int) -> list[str]:
        found = self.some(PLACES, count)
        luck = self.random()
        if luck < 0.12:
            return [self.pick(ADJECTIVES) + " " + place for place in found]
        if luck < 0.17:
            return [word + " " + found[0] for word in self.some(ADJECTIVES, count)]
        return found

    def words(self, count: int) -> list[str]:
        """Draws different words of one sort: rare, made-up, things, names, numbers or codes."""
        luck = self.random()
        if luck < 0.3:
            return self.some(RARE, count)
        if luck < 0.5:
            return self.made_ups(count)
        if luck < 0.7:
            return self.some(THINGS, count)
        if luck < 0.82:
            return self.some(NAMES, count)
        if luck < 0.92:
            return [str(number) for number in self.some(range(2, 1000), count)]
        return self.codes(count)

    def codes(self, count: int) -> list[str]:
        found: list[str] = []
        while len(found) < count:
            word = self.pick("ABCDEFGHJKLMNPQRSTUVWXYZ") + self.pick("ABCDEFGHJKLMNPQRSTUVWXYZ0123456789")
            word += str(self.between(10, 999))
            if word not in found:
                found.append(word)
        return found
