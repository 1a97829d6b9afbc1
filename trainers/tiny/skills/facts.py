"""Questions about the people and places of the world, also as the second turn of a conversation."""

from collections.abc import Mapping
from random import Random

from trainers.tiny.skills.base import Facts, Message, assistant, mentions, split_of_content, text_of, user
from trainers.tiny.world import DOMAINS, ENTITIES

QUESTIONS: Mapping[str, list[str]] = {
    "town": ["Where does {name} live?", "In which town does {name} live?", "Which town is {name} from?"],
    "job": ["What is the job of {name}?", "What does {name} do for a living?", "What work does {name} do?"],
    "pet": [
        "Which pet does {name} have?",
        "What kind of animal does {name} keep?",
        "What pet does {name} own?",
    ],
    "colour": ["What is the favourite colour of {name}?", "Which colour does {name} like best?"],
    "food": [
        "What is the favourite food of {name}?",
        "What does {name} like to eat?",
        "Which food does {name} like best?",
    ],
    "river": ["Which river flows through {name}?", "What is the river of {name}?"],
    "goods": ["What is {name} known for?", "What do they make in {name}?"],
    "region": ["In which part of the land is {name}?", "Where in the land is {name}?"],
}
STATEMENTS: Mapping[str, list[str]] = {
    "town": [
        "{name} lives in {value}.",
        "The home of {name} is in {value}.",
        "{name} has a house in {value}.",
    ],
    "job": ["{name} is a {value}.", "{name} works as a {value}.", "The job of {name} is {value}."],
    "pet": ["{name} has a {value}.", "{name} keeps a {value}.", "The pet of {name} is a {value}."],
    "colour": ["{name} likes {value} best.", "The favourite colour of {name} is {value}."],
    "food": [
        "{name} likes to eat {value}.",
        "The favourite food of {name} is {value}.",
        "{name} loves {value}.",
    ],
    "river": ["The river {value} flows through {name}.", "{name} lies on the river {value}."],
    "goods": ["{name} is known for its {value}.", "They make {value} in {name}."],
    "region": ["{name} is in the {value} of the land.", "{name} lies in the {value}."],
}
FOLLOW_UPS: Mapping[str, str] = {
    "town": "And where does {pronoun} live?",
    "job": "And what is {possessive} job?",
    "pet": "And which pet does {pronoun} have?",
    "colour": "And which colour does {pronoun} like best?",
    "food": "And what does {pronoun} like to eat?",
    "river": "And which river flows through it?",
    "goods": "And what is it known for?",
    "region": "And in which part of the land is it?",
}
POSSESSIVE = {"she": "her", "he": "his", "it": "its"}


def statement(name: str, attribute: str, value: str, draw: Random) -> str:
    return draw.choice(STATEMENTS[attribute]).format(name=name, value=value)


class FactSkill:
    name = "facts"

    def contents(self) -> list[Facts]:
        return [{"entity": e.name, "attribute": key} for e in ENTITIES.values() for key in e.values]

    def ask(self, facts: Facts, draw: Random) -> list[Message]:
        name, attribute = text_of(facts, "entity"), text_of(facts, "attribute")
        others = self._of_the_same_split(facts)
        if draw.random() < 0.75 or not others:
            return [user(draw.choice(QUESTIONS[attribute]).format(name=name))]
        entity, other = ENTITIES[name], draw.choice(others)
        follow_up = FOLLOW_UPS[attribute].format(
            pronoun=entity.pronoun, possessive=POSSESSIVE[entity.pronoun]
        )
        return [
            user(draw.choice(QUESTIONS[other]).format(name=name)),
            assistant(statement(name, other, entity.values[other], draw)),
            user(follow_up),
        ]

    def _of_the_same_split(self, facts: Facts) -> list[str]:
        """The other attributes that may be asked before this one: a first turn must not give away a content
        that another split asks for."""
        split = split_of_content(self.name, facts)
        others: list[Facts] = [
            {**facts, "attribute": key} for key in ENTITIES[text_of(facts, "entity")].values
        ]
        return [
            text_of(other, "attribute")
            for other in others
            if other != facts and split_of_content(self.name, other) == split
        ]

    def right(self, facts: Facts, draw: Random) -> str:
        return self.prose(facts, draw)

    def wrong(self, facts: Facts, draw: Random) -> str:
        name, attribute = text_of(facts, "entity"), text_of(facts, "attribute")
        if draw.random() < 0.25:
            return draw.choice(["I do not know.", f"I have never heard of {name}.", "Who knows."])
        value = ENTITIES[name].values[attribute]
        return statement(name, attribute, draw.choice([v for v in DOMAINS[attribute] if v != value]), draw)

    def correctness(self, facts: Facts, text: str) -> float:
        """1 for the value alone, 0.2 where other values hedge it, -0.5 for another value, 0 for none."""
        name, attribute = text_of(facts, "entity"), text_of(facts, "attribute")
        right = ENTITIES[name].values[attribute]
        said = {value for value in DOMAINS[attribute] if value != name and mentions(text, value)}
        if said == {right}:
            return 1.0
        if right in said:
            return 0.2
        return -0.5 if said else 0.0

    def topic(self, facts: Facts) -> list[str]:
        return [text_of(facts, "entity"), ENTITIES[text_of(facts, "entity")].pronoun]

    def prose(self, facts: Facts, draw: Random) -> str:
        name, attribute = text_of(facts, "entity"), text_of(facts, "attribute")
        return statement(name, attribute, ENTITIES[name].values[attribute], draw)
