"""The training text: short stories, explanations and conversations in simple English, made from a seed.

Every sentence comes from the templates here and the lists in `words.py`, so the text is ours to ship. The
same seed gives the same text.
"""

import random
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from infra.models import words as w

_WORD = re.compile(r"[a-z]+(?:'[a-z]+)?")
SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "You are a friendly assistant. Answer in simple words.",
    "Answer briefly.",
)


@dataclass(frozen=True, slots=True)
class Turn:
    """One message: `role` is system, user or assistant, as in the chat API."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Document:
    """A conversation (`turns`), or plain prose (`text`) when there are no turns."""

    turns: tuple[Turn, ...] = ()
    text: str = ""

    def plain(self) -> str:
        """All words of it, without roles."""
        return "\n".join([*(turn.content for turn in self.turns), self.text]).strip()


def documents(seed: int, size: int) -> Iterator[Document]:
    """Documents until they hold at least `size` characters; about one in five is prose."""
    rng = random.Random(seed)
    made = 0
    while made < size:
        document = _conversation(rng) if rng.random() < 0.8 else Document(text=_prose(rng))
        made += len(document.plain())
        yield document


def words_of(text: str) -> list[str]:
    """The words of `text`, in lower case and in order; an apostrophe inside a word belongs to it."""
    return _WORD.findall(text.lower())


def vocabulary(texts: Iterable[str]) -> frozenset[str]:
    """Every word that occurs in `texts`."""
    return frozenset(word for text in texts for word in words_of(text))


def known_share(text: str, known: frozenset[str]) -> float:
    """Share of the words of `text` that are in `known`, 0 to 1; 0 when there is no word at all."""
    found = words_of(text)
    return sum(word in known for word in found) / len(found) if found else 0.0


def _an(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def _story(rng: random.Random, hero: str | None = None, place: str | None = None) -> str:
    animal = hero or rng.choice(list(w.ANIMALS))
    friend = rng.choice([other for other in w.ANIMALS if other != animal])
    name, adjective = rng.choice(w.NAMES), rng.choice(w.ADJECTIVES)
    where = place or w.ANIMALS[animal][0]
    thing = rng.choice(list(w.THINGS))
    purpose = w.THINGS[thing][0]
    weather, colour, feeling = rng.choice(w.WEATHER), rng.choice(w.COLOURS), rng.choice(w.FEELINGS)
    opening = rng.choice(
        (
            f"Once there was {_an(adjective)} {animal} named {name} who lived near the {where}.",
            f"{name} was {_an(adjective)} {animal} and lived near the {where}.",
            f"On a {weather} day, {_an(adjective)} {animal} named {name} walked to the {where}.",
        )
    )
    middle = rng.choice(
        (
            f"One day {name} found a {colour} {thing} and used it {purpose}.",
            f"{name} met {_an(friend)} who had lost a {colour} {thing}. They looked for it together.",
            f"{_capital(_an(friend))} came and asked for help. {name} brought a {thing} {purpose}.",
        )
    )
    end = rng.choice(
        (
            f"In the end {name} was {feeling} and went home.",
            f"That evening they were {feeling} and shared some {rng.choice(list(w.FOODS))}.",
            "From that day on they were good friends.",
        )
    )
    return f"{opening} {middle} {end}"


def _diary(rng: random.Random) -> str:
    name, other = rng.sample(w.NAMES, 2)
    thing, place, colour = rng.choice(list(w.THINGS)), rng.choice(w.PLACES), rng.choice(w.COLOURS)
    why = rng.choice(("long", "short", "good", "new"))
    first, second, third = w.FOODS[food := rng.choice(list(w.FOODS))]
    return " ".join(
        (
            f"It was a {rng.choice(w.WEATHER)} {rng.choice(w.DAYS)}.",
            rng.choice(
                (
                    f"{name} went to the {place} {rng.choice(w.TIMES)} and saw a {colour} {thing}.",
                    f"{name} wanted to make {food}. First, {first}. Then, {second}. At last, {third}.",
                    f"{name} and {other} took the {thing} to the {place}.",
                )
            ),
            f"{other} was {rng.choice(w.FEELINGS)}, because the day was {why}.",
        )
    )


def _prose(rng: random.Random) -> str:
    return " ".join(rng.choice((_story, _diary))(rng) for _ in range(rng.randint(1, 2)))


def _ask_story(rng: random.Random) -> tuple[str, str]:
    hero, place = rng.choice(list(w.ANIMALS)), rng.choice(w.PLACES)
    ask = rng.choice(("Tell me a story", "Please tell me a short story", "Write a short story", "I want a story"))
    with_hero, with_place = f"{ask} about {_an(hero)}", f"{ask} about the {place}"
    return rng.choice(
        (
            (f"{with_hero}.", _story(rng, hero=hero)),
            (f"{with_place}.", _story(rng, place=place)),
            (f"{ask}.", _story(rng)),
        )
    )


def _ask_fact(rng: random.Random) -> tuple[str, str]:
    topic = rng.choice(list(w.FACTS))
    ask = rng.choice(
        (
            "Tell me about {}.",
            "Can you explain {}?",
            "Explain {} to a child.",
            "What do you know of {}?",
            "What is {}?",
        )
    )
    return ask.format(topic), rng.choice(("", "", "Of course. ", "Good question. ")) + w.FACTS[topic]


def _ask_animal(rng: random.Random) -> tuple[str, str]:
    animal = rng.choice(list(w.ANIMALS))
    where, food, skill = w.ANIMALS[animal]
    name = _capital(_an(animal))
    return rng.choice(
        (
            (f"Where does {_an(animal)} live?", f"{name} lives near the {where}."),
            (f"What does {_an(animal)} eat?", f"{name} eats {food}."),
            (f"What is {_an(animal)} good at?", f"{name} is good at {skill}."),
            (
                f"Tell me about the {animal}.",
                f"The {animal} lives near the {where}, eats {food} and is good at {skill}.",
            ),
        )
    )


def _ask_thing(rng: random.Random) -> tuple[str, str]:
    thing = rng.choice(list(w.THINGS))
    purpose, material = w.THINGS[thing]
    return rng.choice(
        (
            (f"What is {_an(thing)} for?", f"You can use {_an(thing)} {purpose}."),
            (f"What is {_an(thing)} made of?", f"{_capital(_an(thing))} is often made of {material}."),
            (f"Why do I need {_an(thing)}?", f"You need it {purpose}. It is often made of {material}."),
        )
    )


def _ask_recipe(rng: random.Random) -> tuple[str, str]:
    food = rng.choice(list(w.FOODS))
    first, second, third = w.FOODS[food]
    ask = rng.choice(("How do I make {}?", "Can you help me to make {}?", "I want to make {}.", "How is {} made?"))
    return ask.format(food), rng.choice(
        (
            f"First, {first}. Then, {second}. At last, {third}. Enjoy your {food}!",
            f"It is easy. {_capital(first)}, {second} and {third}.",
        )
    )


def _ask_advice(rng: random.Random) -> tuple[str, str]:
    wish = rng.choice(list(w.ADVICE))
    first, second = w.ADVICE[wish]
    ask = rng.choice(("How can I {}?", "I want to {}. What should I do?", "Give me advice: how do I {}?"))
    start = first[0].lower() + first[1:]
    return ask.format(wish), rng.choice(
        (f"{first} and {second}.", f"{first}. Also, {second}.", f"Try this: {start} and {second}.")
    )


def _ask_sum(rng: random.Random) -> tuple[str, str]:
    a, b = rng.randint(1, 10), rng.randint(1, 10)
    left, right, total = w.NUMBERS[a], w.NUMBERS[b], w.NUMBERS[a + b]
    return rng.choice(
        (
            (f"What is {left} plus {right}?", f"{_capital(left)} plus {right} is {total}."),
            (f"I have {left} apples and get {right} more.", f"Then you have {total} apples."),
        )
    )


def _ask_day(rng: random.Random) -> tuple[str, str]:
    n = rng.randrange(7)
    day, after, before = w.DAYS[n], w.DAYS[(n + 1) % 7], w.DAYS[n - 1]
    return rng.choice(
        (
            (f"Which day comes after {day}?", f"After {day} comes {after}."),
            (f"Which day comes before {day}?", f"Before {day} comes {before}."),
        )
    )


def _ask_chat(rng: random.Random) -> tuple[str, str]:
    name = rng.choice(w.NAMES)
    feeling, place, weather = rng.choice(w.FEELINGS), rng.choice(w.PLACES), rng.choice(w.WEATHER)
    return rng.choice(
        (
            (
                rng.choice(("Hello!", "Hi!", "Hello, how are you?", "Good morning!")),
                rng.choice(("Hello! How can I help you today?", "Hi! I am well. What can I do for you?")),
            ),
            (f"My name is {name}.", f"Nice to meet you, {name}! How can I help you today?"),
            (f"I feel {feeling} today.", f"Thank you for telling me that you are {feeling}. What happened?"),
            (
                rng.choice(("Thank you!", "Thanks, that was helpful.", "Thank you, goodbye!")),
                rng.choice(("You are welcome! Have a good day.", "You are welcome. Ask me anything.")),
            ),
            (
                f"It is a {weather} day. What should I do?",
                f"On a {weather} day you could go to the {place} or read a good book at home.",
            ),
            (
                rng.choice(("Who are you?", "What can you do?")),
                "I am a small model that likes stories, animals, food and simple questions.",
            ),
            (f"I am going to the {place}.", f"That sounds good. Enjoy your time at the {place}!"),
        )
    )


_ASKS: tuple[Callable[[random.Random], tuple[str, str]], ...] = (
    _ask_story,
    _ask_fact,
    _ask_animal,
    _ask_thing,
    _ask_recipe,
    _ask_advice,
    _ask_sum,
    _ask_day,
    _ask_chat,
)
_WEIGHTS = (5, 4, 3, 3, 3, 3, 2, 1, 4)


def _conversation(rng: random.Random) -> Document:
    turns = [Turn("system", rng.choice(SYSTEM_PROMPTS))] if rng.random() < 0.25 else []
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        question, answer = rng.choices(_ASKS, _WEIGHTS)[0](rng)
        # People leave out the full stop, the capital or the politeness; the model should not mind.
        style = rng.random()
        if style < 0.15:
            question = question.lower()
        elif style < 0.25:
            question = question.rstrip(".?!")
        turns += [Turn("user", question), Turn("assistant", answer)]
    return Document(turns=tuple(turns))
