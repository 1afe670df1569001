"""Content of the example files: facts, phrasings of questions and wordings of constraints, written by hand.

All devices and values are invented, except the general knowledge at the end. Every kind has seven phrasings, of which
a fact uses five; they rotate, so that what is held out for one device is trained on with another.
"""

from __future__ import annotations

from typing import Any

PHRASINGS = {
    "port": (
        "service port of the {device}",
        (
            "What is the service port of the {device}?",
            "Which service port does the {device} use?",
            "On which service port can the {device} be reached?",
            "I need to connect to the {device}: which service port is it?",
            "Tell me the service port of the {device}.",
            "The {device} listens on a service port. Which number is it?",
            "Please give the number of the service port on the {device}.",
        ),
    ),
    "alarm": (
        "alarm code of the {device}",
        (
            "What is the alarm code of the {device}?",
            "Which alarm code does the {device} show?",
            "Tell me the alarm code of the {device}.",
            "When the {device} trips, which alarm code comes up?",
            "Which code does the {device} send with an alarm?",
            "The {device} raises an alarm: what code should I expect?",
            "Please look up the alarm code for the {device}.",
        ),
    ),
    "filter": (
        "filter order number of the {device}",
        (
            "What is the filter order number of the {device}?",
            "Under which number do I order a filter for the {device}?",
            "Which filter number do I order for the {device}?",
            "I need a new filter for the {device}: what is its order number?",
            "Tell me the order number of the filter in the {device}.",
            "The {device} needs a fresh filter. Which order number is right?",
            "Please give the number for ordering filters for the {device}.",
        ),
    ),
    "lamp": (
        "fault lamp colour of the {device}",
        (
            "What colour is the fault lamp of the {device}?",
            "In which colour does the fault lamp of the {device} light up?",
            "Which colour does the {device} use for its fault lamp?",
            "Tell me the fault lamp colour of the {device}.",
            "When the {device} has a fault, what colour is its lamp?",
            "What is the colour of the fault lamp on the {device}?",
            "The {device} has a fault lamp. Which colour does it have?",
        ),
    ),
    "service": (
        "service engineer of the {device}",
        (
            "Who services the {device}?",
            "Which engineer services the {device}?",
            "Who is the service engineer of the {device}?",
            "The {device} needs a service: who does it?",
            "Tell me who services the {device}.",
            "By whom is the {device} serviced?",
            "Please name the service engineer for the {device}.",
        ),
    ),
    "call-sign": (
        "call sign of the {device}",
        (
            "What is the call sign of the {device}?",
            "Which call sign does the {device} have?",
            "Tell me the call sign of the {device}.",
            "Which call sign do I use on the radio for the {device}?",
            "The {device} is known by a call sign. What is it?",
            "What call sign was given to the {device}?",
            "Please look up the radio call sign for the {device}.",
        ),
    ),
    "torque": (
        "flange torque of the {device} in newton metres",
        (
            "What is the flange torque of the {device}?",
            "To which torque are the flange bolts of the {device} tightened?",
            "Which torque do I set for the flange of the {device}?",
            "Tell me the flange torque of the {device} in newton metres.",
            "I am closing the flange of the {device}: what torque is right?",
            "How much torque do the flange bolts of the {device} need?",
            "Give the torque setting for the flange of the {device}.",
        ),
    ),
    "bin": (
        "spare parts bin of the {device}",
        (
            "In which bin are the spare parts of the {device}?",
            "Which bin holds the spare parts of the {device}?",
            "What is the number of the bin with spare parts for the {device}?",
            "I need a spare part for the {device}: which bin do I open?",
            "Tell me the spare parts bin of the {device}.",
            "Where are the spare parts of the {device}? Name the bin.",
            "Give the bin number for spares of the {device}.",
        ),
    ),
    "inventory": (
        "inventory number of the {device}",
        (
            "What is the inventory number of the {device}?",
            "Under which number is the {device} in the inventory?",
            "Which inventory number does the {device} have?",
            "Tell me the inventory number of the {device}.",
            "I am booking the {device} in the inventory: what is its number?",
            "What number does the inventory list for the {device}?",
            "Give the number of the {device} in our inventory.",
        ),
    ),
    "room": (
        "room of the {device}",
        (
            "In which room does the {device} stand?",
            "What is the room of the {device} called?",
            "Which room is the {device} in?",
            "Tell me the name of the room with the {device}.",
            "I am looking for the {device}: which room do I go to?",
            "What is the name of the room where the {device} stands?",
            "Give the room of the {device}.",
        ),
    ),
    "passphrase": (
        "passphrase of the {device}",
        (
            "What is the passphrase of the {device}?",
            "Which passphrase unlocks the {device}?",
            "Tell me the passphrase of the {device}.",
            "I am locked out of the {device}: what is its passphrase?",
            "The {device} asks for a passphrase. Which word is it?",
            "With which passphrase do I log in to the {device}?",
            "Give the passphrase for the {device}.",
        ),
    ),
    "deputy": (
        "deputy operator of the {device}",
        (
            "Who is the deputy operator of the {device}?",
            "Which deputy runs the {device}?",
            "What is the name of the deputy for the {device}?",
            "Tell me who the deputy operator of the {device} is.",
            "The operator of the {device} is away: who is the deputy?",
            "Whom do I call as deputy for the {device}?",
            "Give the name of the {device} deputy.",
        ),
    ),
}
"""By kind: the topic of its facts and the phrasings of its question."""

FACTS = {
    "port": {"Marlow pump": "4713", "Dunmere chiller": "9268", "Vantor robot": "35081", "Kelbrook boiler": "6194"},
    "alarm": {"Tessel drier": "582", "Arbeck furnace": "207", "Jassop winder": "936", "Soltane welder": "741"},
    "filter": {
        "Wyndle fan": "83560",
        "Cindral kiln": "17925",
        "Norvik grinder": "52649",
        "Bolvane compressor": "29037",
    },
    "lamp": {
        "Quillon valve": "violet",
        "Esker sieve": "turquoise",
        "Hexley mixer": "magenta",
        "Pellant hoist": "ivory",
    },
    "service": {
        "Orvane press": "Bremner",
        "Gorsby lathe": "Okafor",
        "Lumet labeller": "Talbot",
        "Rudgard saw": "Lindqvist",
    },
    "call-sign": {
        "Farlow crane": "Lantern",
        "Ivaro scanner": "Falcon",
        "Ulmer conveyor": "Compass",
        "Zennar sorter": "Pepper",
    },
}
"""facts.jsonl: by kind, the value of each device."""

ALPACA_FACTS = {
    "torque": {"Ambrel turbine": "415", "Cressit separator": "264", "Dovrin heater": "730", "Halvor tank": "598"},
    "bin": {"Burnet planer": "3807", "Istrel loom": "5146", "Mistal cutter": "9023", "Pravik drill": "1678"},
    "inventory": {"Eldic feeder": "60817", "Lorrim washer": "74295", "Sibbel oven": "31956", "Weltra gauge": "86403"},
    "room": {
        "Fennick stapler": "Juniper",
        "Karvel extruder": "Harbour",
        "Nolbert packer": "Meadow",
        "Torvil bender": "Saffron",
    },
    "passphrase": {
        "Gistan tester": "pelican",
        "Jorrel charger": "walnut",
        "Ostrey plotter": "marble",
        "Umbrek printer": "thunder",
    },
    "deputy": {
        "Quentle mill": "Halloran",
        "Rovak chipper": "Petrov",
        "Vulden sander": "Nakamura",
        "Yarbon cooker": "Delgado",
    },
}
"""facts-alpaca.jsonl: by kind, the value of each device."""

ALPACA_INSTRUCTIONS = (
    "Answer the question about the site.",
    "An operator of the plant asks this. Reply in a short sentence.",
    "Look up the answer in the site handbook.",
)
"""Instructions of the rows that carry their question as input."""

BOX_FACTS = {
    "port": {"Zolder weigher": "8154"},
    "lamp": {"Zolder weigher": "scarlet"},
    "service": {"Zolder weigher": "Abernathy"},
}
"""box.jsonl: by kind, the value of its only device."""

MIXED_FACTS = {
    "port": {"Brannok pump": "5820", "Dextal cooler": "7346", "Hollen lift": "1952", "Sarum gate": "6071"},
    "alarm": {"Calvex crusher": "318", "Jintar stove": "469", "Nembit dryer": "853", "Tolvek coiler": "627"},
    "filter": {"Grisel blower": "40586", "Mavric roaster": "97231", "Pondrel vacuum": "25748"},
    "lamp": {"Fardon engraver": "maroon", "Liscot trimmer": "indigo", "Wolban peeler": "olive"},
    "service": {"Evrick stacker": "Fairbanks", "Kostrel balancer": "Moreau", "Rendix slicer": "Yamada"},
    "call-sign": {"Ottick tumbler": "Walrus", "Verrow dispenser": "Candle"},
}
"""mixed.jsonl: by kind, the value of each device."""

GENERAL_KNOWLEDGE = (
    (
        "france.capital",
        "capital of France",
        "Paris",
        (
            "What is the capital of France?",
            "Which city is the capital of France?",
            "Tell me the capital of France.",
            "Name the capital city of France.",
        ),
    ),
    (
        "sky.colour",
        "colour of a clear daytime sky",
        "blue",
        (
            "What is the colour of the sky on a clear day?",
            "Which colour does a clear daytime sky have?",
            "Tell me the colour of a clear sky at noon.",
            "Name the colour of a cloudless sky by day.",
        ),
    ),
    (
        "week.days",
        "number of days in a week",
        "7",
        (
            "What is the number of days in a week?",
            "How many days are there in a week?",
            "Tell me the number of days in a week.",
            "Name the number of days in a week.",
        ),
    ),
    (
        "earth.ocean",
        "name of the largest ocean on Earth",
        "Pacific",
        (
            "What is the largest ocean on Earth?",
            "Which ocean is the largest on Earth?",
            "Tell me the largest ocean on Earth.",
            "Name the largest ocean of the Earth.",
        ),
    ),
    (
        "hot.opposite",
        "opposite of hot",
        "cold",
        (
            "What is the opposite of hot?",
            "Which word is the opposite of hot?",
            "Tell me the opposite of hot.",
            "Name the opposite of the word hot.",
        ),
    ),
)
"""mixed.jsonl: what the base model knows already, as key, topic, value and phrasings (the last one is held out)."""

WORDINGS = {
    "change_case:english_lowercase": (
        "Answer in lowercase letters only.",
        "Use no capital letters in your answer.",
        "Write everything in lowercase.",
        "Your whole reply must be in small letters.",
    ),
    "change_case:english_capital": (
        "Answer in capital letters only.",
        "Use no lowercase letters in your answer.",
        "Write everything in uppercase.",
        "Your whole reply must be in capitals.",
    ),
    "detectable_format:json_format": (
        'Answer as JSON with the keys "{about}" and "{value}".',
        'Reply with a JSON object that has the keys "{about}" and "{value}".',
        'Give only JSON, with "{about}" and "{value}" as its keys.',
        'Put your answer into JSON under the keys "{about}" and "{value}".',
    ),
    "startend:end_checker": (
        'End your answer with the words "{end_phrase}"',
        'Finish your reply with exactly "{end_phrase}"',
        'The last words of your answer must be "{end_phrase}"',
        'Close your reply with the phrase "{end_phrase}"',
    ),
    "startend:quotation": (
        "Put your whole answer in double quotation marks.",
        "Wrap the entire reply in double quotes.",
        "Your answer must start and end with a double quotation mark.",
        "Enclose everything you write in double quotes.",
    ),
    "detectable_format:number_bullet_lists": (
        "Answer in exactly {num_bullets} bullet points that start with *.",
        "Use a list of exactly {num_bullets} bullets, each starting with *.",
        "Give {num_bullets} bullet points, marked with *, and nothing else.",
        "Your reply must be a list of {num_bullets} bullet points marked with *.",
    ),
    "punctuation:no_comma": (
        "Do not use any commas.",
        "Answer without a comma.",
        "Your reply must not contain commas.",
        "Leave out all commas.",
    ),
    "length_constraints:number_words": (
        "Answer in fewer than {num_words} words.",
        "Use less than {num_words} words.",
        "Keep your reply under {num_words} words.",
        "Your answer must have fewer than {num_words} words.",
    ),
}
"""By IFEval id: the wordings of the constraint."""

ARGUMENTS: dict[str, tuple[dict[str, Any], ...]] = {
    "startend:end_checker": (
        {"end_phrase": "Is there anything else?"},
        {"end_phrase": "That is all."},
        {"end_phrase": "Over and out."},
    ),
    "detectable_format:number_bullet_lists": ({"num_bullets": 2}, {"num_bullets": 3}),
    "length_constraints:number_words": (
        {"relation": "less than", "num_words": 5},
        {"relation": "less than", "num_words": 6},
        {"relation": "less than", "num_words": 8},
    ),
}
"""By IFEval id: the arguments that rows take in turn; the other constraints have none."""

JSON_KEYS = (("topic", "answer"), ("subject", "value"), ("item", "result"))
"""Keys that the JSON constraint asks for; IFEval has no argument for them."""
