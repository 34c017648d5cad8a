"""Which constants do pipelines use? A few digits mostly, then a long tail of names and products to be known by heart.

The tail is what large models can still learn: units ("a dozen"), number words ("forty two"), elements ("atomic number
of tin") and products ("12 times 17"), whose phrase does not show the digits that the code needs.
"""

_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
_ONES = "one two three four five six seven eight nine".split()
_TEENS = "eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen".split()
_UNITS = (
    "dozen 12 score 20 gross 144 week 7 day 24 hour 60 fortnight 14 foot 12 year 365 yard 36 byte 8 decade 10 "
    "century 100 mile 1760 kilo 1000 stone 14 pound 16 quire 25 ream 500 fathom 6 furlong 220 chain 66 bushel 64 "
    "gallon 128 pint 20 quart 32 peck 16 hand 4 league 3 perch 30 cable 608 cubit 18 span 9 bale 480 carat 200 dram 27 "
    "grain 65 hogshead 63 firkin 9 kilderkin 18 tun 252 puncheon 84 pipe 126"
)
_ELEMENTS = (
    "hydrogen helium lithium beryllium boron carbon nitrogen oxygen fluorine neon sodium magnesium aluminium "
    "silicon phosphorus sulfur chlorine argon potassium calcium scandium titanium vanadium chromium manganese "
    "iron cobalt nickel copper zinc gallium germanium arsenic selenium bromine krypton rubidium strontium yttrium "
    "zirconium niobium molybdenum technetium ruthenium rhodium palladium silver cadmium indium tin antimony "
    "tellurium iodine xenon caesium barium lanthanum cerium praseodymium neodymium promethium samarium europium "
    "gadolinium terbium dysprosium holmium erbium thulium ytterbium lutetium hafnium tantalum tungsten rhenium "
    "osmium iridium platinum gold mercury thallium lead bismuth polonium astatine radon francium radium actinium "
    "thorium protactinium uranium"
)
_LARGEST_FACTOR = 25  # products stay below 625: two or three digits, as in textbooks

Constant = tuple[str, str]


def units() -> list[Constant]:
    """(phrase, code) of each unit, the commonest first.

    >>> units()[0]
    ('a dozen', '12')
    """
    words = _UNITS.split()
    return [
        (f"an {u}" if u[0] in "aeio" or u == "hour" else f"a {u}", v)
        for u, v in zip(words[::2], words[1::2], strict=True)
    ]


def tail() -> list[Constant]:
    """(phrase, code) of the long tail: units, number words, elements and products in turn.

    >>> tail()[:4]
    [('a dozen', '12'), ('eleven', '11'), ('atomic number of hydrogen', '1'), ('2 times 3', '6')]
    """
    elements = [(f"atomic number of {name}", str(i)) for i, name in enumerate(_ELEMENTS.split(), 1)]
    products = [(a, b) for b in range(3, _LARGEST_FACTOR + 1) for a in range(2, b)]
    lists = [units(), _number_words(), elements, [(f"{a} times {b}", str(a * b)) for a, b in products]]
    longest = max(map(len, lists))
    return [row[i] for i in range(longest) for row in lists if i < len(row)]


def _number_words() -> list[Constant]:
    found = [(word, str(11 + i)) for i, word in enumerate(_TEENS)]
    for ten, word in enumerate(_TENS, 2):
        found.append((word, str(10 * ten)))
        found += [(f"{word} {one}", str(10 * ten + i)) for i, one in enumerate(_ONES, 1)]
    return found
