"""Word lists from which the training text is made. All of it was written for this project."""

NAMES = (
    "Ada",
    "Ben",
    "Clara",
    "Daniel",
    "Elsa",
    "Finn",
    "Grace",
    "Hugo",
    "Iris",
    "Jonas",
    "Kira",
    "Leo",
    "Mara",
    "Nils",
    "Olive",
    "Paul",
    "Rosa",
    "Sam",
    "Tessa",
    "Victor",
)
PLACES = (
    "forest",
    "garden",
    "harbour",
    "kitchen",
    "library",
    "market",
    "meadow",
    "mountain",
    "museum",
    "park",
    "river",
    "school",
    "station",
    "valley",
    "village",
)
ADJECTIVES = (
    "small",
    "big",
    "old",
    "young",
    "quiet",
    "happy",
    "clever",
    "gentle",
    "brave",
    "curious",
    "patient",
    "proud",
    "careful",
    "friendly",
    "shy",
)
COLOURS = ("red", "blue", "green", "yellow", "brown", "white", "black", "silver")
WEATHER = ("sunny", "rainy", "windy", "cloudy", "snowy", "warm", "cold", "foggy")
TIMES = ("in the morning", "in the afternoon", "in the evening", "at night", "after lunch", "before dinner")
FEELINGS = ("happy", "tired", "surprised", "proud", "calm", "thankful", "excited", "relieved")

# thing: (what it is for, what it is made of)
THINGS = {
    "lamp": ("to see in the dark", "glass and metal"),
    "book": ("to read stories", "paper"),
    "boat": ("to cross the water", "wood"),
    "basket": ("to carry apples", "grass and wood"),
    "clock": ("to know the time", "metal"),
    "blanket": ("to keep warm", "wool"),
    "ladder": ("to reach the roof", "wood"),
    "cup": ("to drink tea", "clay"),
    "key": ("to open a door", "metal"),
    "window": ("to let in light", "glass"),
    "bridge": ("to cross the river", "stone"),
    "map": ("to find the way", "paper"),
    "drum": ("to make music", "wood and leather"),
    "kettle": ("to boil water", "metal"),
    "bell": ("to call the children", "metal"),
    "coat": ("to stay dry", "wool"),
}

# animal: (where it lives, what it eats, what it is good at)
ANIMALS = {
    "fox": ("forest", "berries and mice", "hiding"),
    "rabbit": ("meadow", "grass", "jumping"),
    "owl": ("forest", "mice", "seeing in the dark"),
    "duck": ("river", "plants and seeds", "swimming"),
    "goat": ("mountain", "grass", "climbing"),
    "bear": ("forest", "honey and fish", "sleeping through the winter"),
    "horse": ("meadow", "hay", "running"),
    "cat": ("village", "fish", "climbing"),
    "dog": ("village", "meat", "finding things"),
    "otter": ("river", "fish", "swimming"),
    "bee": ("garden", "nectar", "finding flowers"),
    "crow": ("valley", "seeds", "solving puzzles"),
    "seal": ("harbour", "fish", "diving"),
    "deer": ("forest", "leaves", "listening"),
}

# food: how it is made, in three steps
FOODS = {
    "soup": ("cut the carrots", "boil them in water", "add salt"),
    "bread": ("mix flour and water", "let the dough rest", "bake it until it is brown"),
    "tea": ("boil the water", "pour it over the leaves", "wait for four minutes"),
    "pancakes": ("mix flour, eggs and milk", "heat the pan", "bake both sides"),
    "salad": ("wash the leaves", "cut the tomatoes", "add oil and salt"),
    "porridge": ("heat the milk", "add the oats", "stir it slowly"),
    "apple cake": ("slice the apples", "mix the dough", "bake it for an hour"),
    "lemonade": ("press the lemons", "add sugar and water", "put in some ice"),
}

# topic of science: one true and simple sentence for a child
FACTS = {
    "rain": "Water rises from the sea, cools in the clouds and falls down as rain.",
    "snow": "Snow is water that freezes in cold clouds and falls as small white stars.",
    "the moon": "The moon goes around the earth in about four weeks and shines with the light of the sun.",
    "the sun": "The sun is a star, and its light takes about eight minutes to reach us.",
    "the wind": "Wind is air that moves from a cool place to a warm place.",
    "the sea": "The sea is salty because rivers carry salt from the stones to the water.",
    "a shadow": "A shadow is the place that light cannot reach because something is in the way.",
    "a rainbow": "A rainbow appears when the sun shines through small drops of water.",
    "a seed": "A seed holds a tiny plant that waits for water and warm soil.",
    "sleep": "Sleep gives the body time to rest and helps us to remember.",
    "a magnet": "A magnet pulls iron because of tiny forces inside the metal.",
    "sound": "Sound is air that shakes, and our ears can feel it.",
    "a river": "A river begins in the mountains and flows down until it meets the sea.",
    "ice": "Ice is frozen water, and it is lighter than water, so it floats.",
    "the stars": "The stars are suns that are very far away, so they look small.",
    "fire": "Fire needs air, heat and something to burn.",
}

# a wish for advice: what to do
ADVICE = {
    "sleep better": ("Go to bed at the same time every day", "put the phone away an hour before"),
    "learn a language": ("Learn ten new words every day", "speak with a friend as often as you can"),
    "make new friends": ("Ask people about their day", "listen with care"),
    "save money": ("Write down what you spend", "wait a day before you buy something"),
    "be more patient": ("Take three slow breaths", "count to ten before you answer"),
    "read more": ("Keep a book on the table", "read a few pages before you sleep"),
    "grow tomatoes": ("Choose a sunny place", "give the plants water every morning"),
    "keep my room clean": ("Put everything back in its place", "clean for ten minutes each evening"),
    "write a good letter": ("Begin with a warm greeting", "say the most important thing first"),
    "run faster": ("Start slowly", "run a little more each week"),
    "remember names": ("Say the name aloud when you hear it", "think of a picture that belongs to it"),
    "start a garden": ("Begin with a few easy plants", "look at them every day"),
}

NUMBERS = (
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
    "twenty",
)
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
