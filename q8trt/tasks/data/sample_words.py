"""The vocabulary of the built-in sample: topics, each with the words that make sense together.

Synonyms are joined by ``/``, concepts by ``,``; ``+`` marks a plural noun. Verbs are infinitives.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

Concept = tuple[str, ...]
"""Words or phrases that mean the same."""


@dataclass(frozen=True)
class Topic:
    """The concepts that each slot of a sentence can take."""

    subjects: tuple[Concept, ...]
    subject_adjectives: tuple[Concept, ...]
    verbs: tuple[Concept, ...]
    objects: tuple[Concept, ...]
    object_adjectives: tuple[Concept, ...]
    places: tuple[Concept, ...]


def _concepts(text: str) -> tuple[Concept, ...]:
    return tuple(tuple(form.strip() for form in concept.split("/")) for concept in text.split(","))


_PEOPLE = "man/guy, woman/lady, girl/schoolgirl, boy/lad, +children/+kids, teenager/adolescent"
_LOOKS = "tall, friendly/kind, smiling/cheerful, tired/weary, thin/slim"

_TOPICS = {
    "kitchen": (
        f"{_PEOPLE}, chef/cook, grandmother/grandma, waiter",
        _LOOKS,
        "chop/cut up, wash/rinse, fry, serve/dish up, peel, boil",
        "+potatoes, +onions, +carrots, +mushrooms, +tomatoes, +eggplants/+aubergines, chicken, +shrimps/+prawns",
        "fresh, large/big, small/little, cheap/inexpensive, frozen",
        "in the kitchen, at a restaurant/in a diner, on the balcony, at a campsite/in a camp",
    ),
    "music": (
        f"{_PEOPLE}, musician, street performer/busker, student/pupil",
        "young/youthful, talented/gifted, bearded, nervous/anxious, famous/well-known",
        "play, repair/fix, carry, buy/purchase, tune, clean",
        "guitar, piano, violin/fiddle, flute, trumpet, drum, harp, accordion/squeezebox",
        "black, expensive/costly, wooden, broken/damaged, new/brand-new",
        "on the stage/on stage, in a music shop/in a music store, at a wedding, in the park",
    ),
    "farm": (
        f"{_PEOPLE}, farmer, +cowboys, veterinarian/vet",
        _LOOKS,
        "feed, brush/groom, ride, chase/pursue, lead/guide, photograph",
        "horse, pony, donkey/mule, cow, sheep, goat, pig/hog, camel",
        "brown, white, hungry/starving, young, lazy/idle, strong/powerful",
        "on a farm, in the meadow/in the pasture, near the barn, at the fair/at a fair",
    ),
    "garden": (
        f"{_PEOPLE}, gardener, neighbor, +retirees/+pensioners",
        _LOOKS,
        "plant, water, trim/prune, dig up, paint/draw, pick",
        "+roses, +tulips, +sunflowers, +strawberries, +lemons, tree, bush/shrub, +mushrooms",
        "beautiful/lovely, tiny/very small, wild, yellow, old",
        "in the garden, behind the house/at the back of the house, in a greenhouse/in a glasshouse, in the yard",
    ),
    "workshop": (
        f"{_PEOPLE}, carpenter/woodworker, +workers/+laborers, uncle",
        "skilled/expert, old/elderly, patient, strong/powerful, young/youthful",
        "paint, repair/fix, build/construct, polish, carry, measure",
        "table, chair, bookshelf/bookcase, boat, cabinet/cupboard, fence, door, bed",
        "wooden, broken/damaged, heavy, narrow, huge/enormous",
        "in a workshop, in the garage, on the beach/at the seaside, in the backyard",
    ),
    "office": (
        "manager/boss, secretary/clerk, lawyer/attorney, accountant, woman/lady, man/guy, +interns/+trainees",
        "busy, new, young/youthful, careful/cautious, angry/furious",
        "write, read, sign, print/print out, send/mail, translate, tear up/rip up",
        "letter, report, contract, invoice/bill, form, application, complaint, speech",
        "long/lengthy, short/brief, important, secret/confidential, final",
        "in the office, at a desk, at home, during a meeting",
    ),
    "road": (
        f"{_PEOPLE}, mechanic, driver/motorist, +soldiers/+troops",
        "young/youthful, drunk/intoxicated, careful/cautious, wealthy/rich, bald",
        "drive, park, wash/clean, push, repair/fix, steal, sell",
        "car/automobile, truck/lorry, motorcycle/motorbike, bus, tractor, bicycle/bike, van, taxi/cab",
        "red, old, rusty, stolen, fast/speedy, electric",
        "on the highway/on the freeway, in the parking lot, in front of a hotel, on a muddy road",
    ),
    "sport": (
        f"{_PEOPLE}, +players, dog/hound, coach/trainer",
        "tall, excited/thrilled, barefoot, young/youthful, strong/powerful",
        "throw/toss, catch/grab, kick, drop, hide, look for/search for",
        "football, basketball, baseball, frisbee, stick, rope, helmet, whistle",
        "orange, wet/soaked, plastic, new/brand-new, heavy",
        "on the beach/at the seaside, in the park, on a snowy field/on a field of snow, in the gym/at the gym",
    ),
    "science": (
        f"{_PEOPLE}, scientist/researcher, teacher/instructor, professor, +students/+pupils",
        "curious/inquisitive, young/youthful, serious, famous/well-known",
        "study/examine, draw/sketch, describe, collect/gather, photograph, weigh",
        "stone/rock, shell, fossil, bone, butterfly, beetle, feather, skull, leaf",
        "strange/odd, ancient/very old, rare/uncommon, blue, small/little",
        "in the laboratory/in the lab, in a cave, at school, at the museum/in a museum",
    ),
    "politics": (
        "government, president, mayor, senator, court/tribunal, committee/panel, opposition, prime minister/premier",
        "new, conservative, local, powerful/influential, divided",
        "reject/turn down, approve/back, announce, postpone/delay, criticize/condemn, discuss/debate",
        "plan, trade deal/trade agreement, tax cut, budget, peace treaty/peace accord, pension reform, health law",
        "controversial/disputed, national, ambitious/bold, expensive/costly, secret/confidential",
        "in parliament, at a press conference/at a news conference, in the capital, on television/on TV",
    ),
    "business": (
        "company/firm, bank, investor, airline, family, billionaire, rival/competitor, foundation",
        "German, small/little, foreign, private, struggling/troubled",
        "buy/purchase, sell, close/shut down, open, expand/enlarge, rent/lease",
        "factory, hotel, shop/store, newspaper, brewery, hospital/clinic, mine, cinema/movie theater",
        "profitable, historic, modern/contemporary, local, empty/vacant",
        "in China, in northern France/in the north of France, near the airport, in the city center/downtown",
    ),
    "rescue": (
        "doctor/physician, nurse, firefighter/fireman, +soldiers/+troops, police officer/policeman, stranger, woman",
        "brave/courageous, young/youthful, exhausted/worn out, armed, calm",
        "treat, rescue/save, comfort/console, carry, search for/look for, question/interrogate",
        "driver/motorist, sailor/seaman, tourist, hiker, +refugees, patient, prisoner/inmate, child/kid",
        "injured/wounded, lost/missing, old/elderly, unconscious, frightened/scared",
        "at the hospital, after an earthquake/after a quake, in the mountains, at the border",
    ),
    "clothes": (
        f"{_PEOPLE}, tailor, model, actress",
        "elegant/stylish, short, old/elderly, wealthy/rich, blonde",
        "wear, wash/launder, iron, buy/purchase, sew/stitch, fold",
        "shirt, dress/gown, coat/overcoat, scarf/shawl, +trousers/+pants, +gloves, hat, sweater/jumper",
        "green, warm, silk, dirty/filthy, striped",
        "in the bedroom, at a market, at home, at a party",
    ),
    "home": (
        f"{_PEOPLE}, cat, monkey/ape, toddler, puppy",
        "small/little, playful, clumsy/awkward, hungry/starving, naughty",
        "open, hide, break/smash, play with, find/discover, lick",
        "box, bottle, toy, book, lamp, mirror, phone/telephone, pillow/cushion, remote control",
        "empty, pink, glass, shiny/gleaming, old",
        "on the sofa/on the couch, in the living room/in the lounge, under the table, on the stairs",
    ),
}

TOPICS: tuple[Topic, ...] = tuple(
    Topic(**{slot.name: _concepts(text) for slot, text in zip(fields(Topic), texts, strict=True)})
    for texts in _TOPICS.values()
)

EXTRAS = _concepts(
    "in the morning, at night/during the night, on Monday, before lunch/before the midday meal, again/once more, "
    "quickly/rapidly, slowly, carefully/with care, in the rain/while it rains, alone/without help, "
    "for the first time, with great skill/very skillfully"
)

# Infinitive -> (present participle, past tense, past participle), where the rules of `inflect` do not hold.
IRREGULAR = {
    "build": ("building", "built", "built"),
    "buy": ("buying", "bought", "bought"),
    "break": ("breaking", "broke", "broken"),
    "catch": ("catching", "caught", "caught"),
    "chop": ("chopping", "chopped", "chopped"),
    "cut": ("cutting", "cut", "cut"),
    "dig": ("digging", "dug", "dug"),
    "draw": ("drawing", "drew", "drawn"),
    "drive": ("driving", "drove", "driven"),
    "drop": ("dropping", "dropped", "dropped"),
    "feed": ("feeding", "fed", "fed"),
    "find": ("finding", "found", "found"),
    "grab": ("grabbing", "grabbed", "grabbed"),
    "hide": ("hiding", "hid", "hidden"),
    "lead": ("leading", "led", "led"),
    "read": ("reading", "read", "read"),
    "rip": ("ripping", "ripped", "ripped"),
    "ride": ("riding", "rode", "ridden"),
    "sell": ("selling", "sold", "sold"),
    "send": ("sending", "sent", "sent"),
    "sew": ("sewing", "sewed", "sewn"),
    "shut": ("shutting", "shut", "shut"),
    "steal": ("stealing", "stole", "stolen"),
    "take": ("taking", "took", "taken"),
    "tear": ("tearing", "tore", "torn"),
    "throw": ("throwing", "threw", "thrown"),
    "trim": ("trimming", "trimmed", "trimmed"),
    "wear": ("wearing", "wore", "worn"),
    "write": ("writing", "wrote", "written"),
}
