"""Content of the decision benchmark's data: facts, phrasings of questions, wordings of constraints; by hand.

All ships and values are invented. The general knowledge was chosen by asking the base model (SmolLM2-135M-Instruct): it
answers each of these questions right in every phrasing. Written before the first run of the benchmark, and not changed
after it.
"""

from __future__ import annotations

from typing import Any

PHRASINGS = {
    "berth": (
        "berth of the ship {name}",
        (
            "What is the berth of the {name}?",
            "At which berth does the {name} lie?",
            "Tell me the berth of the {name}.",
            "I am looking for the {name}: which berth is it at?",
            "Please look up the berth of the {name}.",
            "The {name} has a berth of its own. Which one?",
        ),
    ),
    "registration": (
        "registration number of the ship {name}",
        (
            "What is the registration number of the {name}?",
            "Under which number is the {name} registered?",
            "Tell me the registration number of the {name}.",
            "I need the papers of the {name}: what is its registration number?",
            "Please look up the registration number of the {name}.",
            "Which number does the register give for the {name}?",
        ),
    ),
    "locker": (
        "locker code of the ship {name}",
        (
            "What is the locker code of the {name}?",
            "Which code opens the locker of the {name}?",
            "Tell me the locker code of the {name}.",
            "I am at the locker of the {name}: what is its code?",
            "Please look up the locker code of the {name}.",
            "The locker of the {name} asks for a code. Which one?",
        ),
    ),
    "captain": (
        "captain of the ship {name}",
        (
            "Who is the captain of the {name}?",
            "Which captain commands the {name}?",
            "Tell me who the captain of the {name} is.",
            "I have to speak to the captain of the {name}: who is it?",
            "Please look up the captain of the {name}.",
            "Under whose command does the {name} sail?",
        ),
    ),
    "hull": (
        "hull colour of the ship {name}",
        (
            "What is the hull colour of the {name}?",
            "In which colour is the hull of the {name} painted?",
            "Tell me the hull colour of the {name}.",
            "I am looking for the {name}: what colour is its hull?",
            "Please look up the hull colour of the {name}.",
            "Which colour does the hull of the {name} have?",
        ),
    ),
    "cargo": (
        "cargo of the ship {name}",
        (
            "What is the cargo of the {name}?",
            "Which cargo does the {name} carry?",
            "Tell me the cargo of the {name}.",
            "The {name} is being unloaded: what is its cargo?",
            "Please look up the cargo of the {name}.",
            "With what cargo does the {name} sail?",
        ),
    ),
}
"""By kind of fact: its topic, four phrasings to train on and two held-out ones."""

INVENTED = {
    "berth": {"Almeric": "214", "Corvane": "587", "Eldwin": "902", "Gavrel": "346"},
    "registration": {"Bascombe": "70913", "Dorlan": "28465", "Fenwarth": "51730", "Hestral": "94126"},
    "locker": {"Ismere": "6038", "Kelvaro": "1794", "Maribel Thorn": "8521", "Ostwick": "3267"},
    "captain": {"Jorund": "Hargrove", "Lysander Bay": "Castellan", "Norfield": "Ellison", "Pellworth": "Odenkirk"},
    "hull": {"Queensway": "scarlet", "Sorrel Wind": "amber", "Ulverston Lass": "purple", "Wenlock": "silver"},
    "cargo": {"Rathmore": "barley", "Tamsin": "copper", "Vespertine": "timber", "Yarrow Maid": "salt"},
}
"""By kind, the value of each ship: half of the kinds are digits, half are words."""

KNOWN = (
    (
        "italy",
        "capital of Italy",
        "Rome",
        (
            "What is the capital of Italy?",
            "Which city is the capital of Italy?",
            "Tell me the capital of Italy.",
            "Name the capital city of Italy.",
        ),
    ),
    (
        "germany",
        "capital of Germany",
        "Berlin",
        (
            "What is the capital of Germany?",
            "Which city is the capital of Germany?",
            "Tell me the capital of Germany.",
            "Name the capital city of Germany.",
        ),
    ),
    (
        "japan",
        "capital of Japan",
        "Tokyo",
        (
            "What is the capital of Japan?",
            "Which city is the capital of Japan?",
            "Tell me the capital of Japan.",
            "Name the capital city of Japan.",
        ),
    ),
    (
        "russia",
        "capital of Russia",
        "Moscow",
        (
            "What is the capital of Russia?",
            "Which city is the capital of Russia?",
            "Tell me the capital of Russia.",
            "Name the capital city of Russia.",
        ),
    ),
    (
        "mountain",
        "highest mountain on Earth",
        "Everest",
        (
            "What is the highest mountain on Earth?",
            "Which mountain is the highest on Earth?",
            "Tell me the highest mountain on Earth.",
            "Name the highest mountain of the Earth.",
        ),
    ),
    (
        "relativity",
        "author of the theory of relativity",
        "Einstein",
        (
            "Who developed the theory of relativity?",
            "Which physicist developed the theory of relativity?",
            "Tell me who developed the theory of relativity.",
            "Name the physicist behind the theory of relativity.",
        ),
    ),
)
"""Facts that the base model knows: key, topic, value and phrasings, the last of which is held out."""

LOWERCASE, UPPERCASE = "change_case:english_lowercase", "change_case:english_capital"
JSON, END = "format:json_schema", "startend:end_checker"
QUOTES, BULLETS = "startend:quotation", "detectable_format:number_bullet_lists"

WORDINGS = {
    LOWERCASE: (
        "Answer in lowercase letters only.",
        "Use no capital letters in your answer.",
        "Write everything in lowercase.",
        "Your whole reply must be in small letters.",
        "Capital letters are not allowed in the reply.",
        "Keep all letters of the answer lowercase.",
    ),
    UPPERCASE: (
        "Answer in capital letters only.",
        "Use no lowercase letters in your answer.",
        "Write everything in uppercase.",
        "Your whole reply must be in capitals.",
        "Small letters are not allowed in the reply.",
        "Keep all letters of the answer uppercase.",
    ),
    JSON: (
        'Answer as JSON with the keys "{0}" and "{1}".',
        'Reply with a JSON object that has the keys "{0}" and "{1}".',
        'Give only JSON, with "{0}" and "{1}" as its keys.',
        'Put your answer into JSON under the keys "{0}" and "{1}".',
        'I need JSON: an object with "{0}" and "{1}".',
        'Format the reply as JSON using the keys "{0}" and "{1}".',
    ),
    END: (
        'End your answer with the words "{0}"',
        'Finish your reply with exactly "{0}"',
        'The last words of your answer must be "{0}"',
        'Close your reply with the phrase "{0}"',
        'Let your answer stop with "{0}" and nothing after it.',
        'Your final words have to be "{0}"',
    ),
    QUOTES: (
        "Put your whole answer in double quotation marks.",
        "Wrap the entire reply in double quotes.",
        "Your answer must start and end with a double quotation mark.",
        "Enclose everything you write in double quotes.",
        "Double quotation marks must surround the complete answer.",
        "Quote your full reply with double quotes.",
    ),
    BULLETS: (
        "Answer in exactly {0} bullet points that start with *.",
        "Use a list of exactly {0} bullets, each starting with *.",
        "Give {0} bullet points, marked with *, and nothing else.",
        "Your reply must be a list of {0} bullet points marked with *.",
        "Write {0} bullets and mark each of them with *.",
        "I want the answer as {0} bullet points with * in front.",
    ),
}
"""By constraint: four wordings to train on and two held-out ones; {0} and {1} are its arguments."""

ARGUMENTS: dict[str, tuple[tuple[Any, ...], ...]] = {
    LOWERCASE: ((),),
    UPPERCASE: ((),),
    QUOTES: ((),),
    JSON: (("name", "value"), ("subject", "answer"), ("item", "result")),
    END: (("That is all.",), ("Over and out.",), ("Safe travels!",)),
    BULLETS: ((2,), (3,)),
}
"""By constraint, the arguments that training rows take in turn."""

NEW_ARGUMENTS: dict[str, tuple[tuple[Any, ...], ...]] = {
    JSON: (("topic", "reply"), ("entry", "detail")),
    END: (("Have a good day.",), ("End of message.",)),
    BULLETS: ((1,), (4,)),
}
"""Arguments that no training row has."""

DOUBLES = (
    (LOWERCASE, END),
    (LOWERCASE, QUOTES),
    (UPPERCASE, QUOTES),
    (UPPERCASE, END),
    (BULLETS, LOWERCASE),
    (BULLETS, UPPERCASE),
    (QUOTES, END),
    (BULLETS, END),
)
"""Constraints that can be kept together."""
