"""Numbers in words, English and German: what `copy-translation` learns."""

_ENGLISH = """
zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen
sixteen seventeen eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety hundred
and
"""
_GERMAN = """
null eins zwei drei vier fünf sechs sieben acht neun zehn elf zwölf dreizehn vierzehn fünfzehn
sechzehn siebzehn achtzehn neunzehn zwanzig dreißig vierzig fünfzig sechzig siebzig achtzig neunzig
hundert und ein
"""
ENGLISH = _ENGLISH.split()
GERMAN = _GERMAN.split()
LONGEST = 5

_HUNDRED, _AND = 28, 29  # places in both lists


def english(number: int) -> list[str]:
    """The words of a number below 1,000.

    Example:
      >>> " ".join(english(347)), english(20), english(0)
      ('three hundred and forty seven', ['twenty'], ['zero'])
    """
    hundreds, rest = divmod(number, 100)
    words = [ENGLISH[hundreds], ENGLISH[_HUNDRED]] if hundreds else []
    if rest and hundreds:
        words.append(ENGLISH[_AND])
    if rest >= 20:
        words.append(ENGLISH[18 + rest // 10])
        rest %= 10
    return [*words, ENGLISH[rest]] if rest or not words else words


def german(number: int) -> list[str]:
    """The words of a number below 1,000, which German writes as one.

    Example:
      >>> " ".join(german(347)), " ".join(german(121)), german(1)
      ('drei hundert sieben und vierzig', 'ein hundert ein und zwanzig', ['eins'])
    """
    hundreds, rest = divmod(number, 100)
    words = [GERMAN[hundreds], GERMAN[_HUNDRED]] if hundreds else []
    if rest >= 20:
        words += [GERMAN[rest % 10], GERMAN[_AND]] if rest % 10 else []
        words.append(GERMAN[18 + rest // 10])
    elif rest or not hundreds:
        words.append(GERMAN[rest])
    # It is "eins" at the end alone.
    return ["ein" if word == "eins" else word for word in words[:-1]] + words[-1:]
