"""Somebody says hello, and how the day went."""

from random import Random

from trainers.tiny.skills.base import Facts, Message, mentions, text_of, user
from trainers.tiny.world import PEOPLE

OBJECTS = "kite boat hat drum ball puzzle doll bike book garden".split()
SAD = {"lost": "lost my {object}", "broke": "broke my {object}", "sold": "had to sell my {object}"}
HAPPY = {"found": "found my {object}", "got": "got a new {object}", "fixed": "fixed my {object}"}
VERBS = {**SAD, **HAPPY}
ASK = [
    "Hello, I am {name}. I {event} today.",
    "Hi, my name is {name}. Today I {event}.",
    "Good morning, I am {name} and I {event}.",
]
COMFORT = [
    "I am sorry that you {event}.",
    "How sad that you {event}.",
    "I am sorry to hear that you {event}.",
]
JOY = ["I am glad that you {event}.", "How nice that you {event}.", "It is great that you {event}."]
SORRY_WORDS = ("sorry", "sad", "pity", "comfort")
GLAD_WORDS = ("glad", "nice", "great", "wonderful", "congratulations")
NAMES = [person.name for person in PEOPLE]


def _yours(facts: Facts, verb: str | None = None) -> str:
    thing = text_of(facts, "object")
    return VERBS[verb or text_of(facts, "verb")].format(object=thing).replace("my", "your")


class SmallTalkSkill:
    name = "small_talk"

    def contents(self) -> list[Facts]:
        return [{"name": n, "verb": v, "object": o} for n in NAMES for v in VERBS for o in OBJECTS]

    def ask(self, facts: Facts, draw: Random) -> list[Message]:
        event = VERBS[text_of(facts, "verb")].format(**facts)
        return [user(draw.choice(ASK).format(name=facts["name"], event=event))]

    def right(self, facts: Facts, draw: Random) -> str:
        feeling = COMFORT if facts["verb"] in SAD else JOY
        return f"Hello {facts['name']}! {draw.choice(feeling).format(event=_yours(facts))}"

    def wrong(self, facts: Facts, draw: Random) -> str:
        slip = draw.random()
        if slip < 0.35:  # the wrong feeling
            feeling = JOY if facts["verb"] in SAD else COMFORT
            return f"Hello {facts['name']}! {draw.choice(feeling).format(event=_yours(facts))}"
        if slip < 0.7:  # the wrong person
            feeling = COMFORT if facts["verb"] in SAD else JOY
            other = draw.choice([name for name in NAMES if name != facts["name"]])
            return f"Hello {other}! {draw.choice(feeling).format(event=_yours(facts))}"
        return draw.choice(["Hello.", "So what.", "I do not care.", "Hello! What do you want?"])

    def correctness(self, facts: Facts, text: str) -> float:
        """Name 0.3 (another -0.2), feeling 0.5 (its opposite -0.5), thing 0.2."""
        fitting, opposite = (SORRY_WORDS, GLAD_WORDS) if facts["verb"] in SAD else (GLAD_WORDS, SORRY_WORDS)
        name = text_of(facts, "name")
        score = 0.3 if mentions(text, name) else 0.0
        score -= 0.2 if any(mentions(text, other) for other in NAMES if other != name) else 0.0
        if any(mentions(text, word) for word in opposite):
            score -= 0.5
        elif any(mentions(text, word) for word in fitting):
            score += 0.5
        return score + (0.2 if mentions(text, text_of(facts, "object")) else 0.0)

    def topic(self, facts: Facts) -> list[str]:
        return [text_of(facts, "name"), text_of(facts, "object")]

    def prose(self, facts: Facts, draw: Random) -> str:
        mood = "sad" if facts["verb"] in SAD else "glad"
        event = VERBS[text_of(facts, "verb")].format(**facts).replace("my", "the")
        return draw.choice([f"{facts['name']} {event} and was {mood}.", f"Today {facts['name']} {event}."])
