"""The texts SmolLM2 is asked about: prompts, tokeniser trials and conversations.

In: nothing. Out: plain data for `smollm2.py`, which adds two prompts: a rendered conversation and 200 tokens of prose.
"""

from __future__ import annotations

PROMPTS: dict[str, str] = {
    "one_token": "A",
    "capital": "The capital of France is",
    "code": 'def fibonacci(n):\n    """Return the n-th Fibonacci number."""\n    if n < 2:\n        return n\n',
    "unicode": (
        "Zürich, 東京 and São Paulo are cities 🌍🚀. The café in Kraków costs 5 € – naïve?\nThe three cities are"
    ),
    "numbers": '{"name": "sensor-17", "values": [1, 2, 3.5, 1024, 99999], "unit": "°C", "ok": true}\n{"name":',
    "story": "Once upon a time, in a small village by the sea, there lived an old fisherman who",
}

TOKENIZER_TEXTS: tuple[str, ...] = (
    "Hello, world!",
    " leading space",
    "trailing space ",
    "two  spaces   three    four",
    "\t tab\tand\n\nnew lines\r\n \n  end",
    "12345 007 3.14159 1,000,000 2024-01-31",
    "a1b2c3 x86_64 H2O v1.2.3",
    "I'm you're he'll WE'VE they'd it's 'tis don’t",
    "naïve café Zürich Ångström ﬁ ß ẞ",
    "東京は日本の首都です。中文字符 한국어",
    "Привет мир! Γειά σου Κόσμε",
    "مرحبا بالعالم שלום עולם",
    "हिन्दी ไทย",
    "🌍🚀👩‍👩‍👧‍👦🏳️‍🌈 ❤️",
    "e\u0301 combining and \u200bzero\u200dwidth\ufeff",
    "½ ² ³ ⅷ ① ٣ ४",
    "def f(x):\n    return x**2  # square\n",
    "<|im_start|>user\nHi<|im_end|>\n",
    "text with <|endoftext|> inside<|im_end|>and <repo_name>",
    "<|im_start|",
    "https://example.org/a?b=c&d=%20#e",
    "!!!???...---===+++///\\\\\\",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "                                ",
    "\x00\x01\x7f",
    "",
)

CONVERSATIONS: tuple[list[dict[str, str]], ...] = (
    [{"role": "user", "content": "What is the capital of France?"}],
    [
        {"role": "system", "content": "You answer in one word."},
        {"role": "user", "content": "Is the sky blue?"},
    ],
    [
        {"role": "user", "content": "Hi 🙂"},
        {"role": "assistant", "content": "Hello! How can I help?"},
        {"role": "user", "content": '  Write <b>bold</b> & "quotes"\nin two lines.  '},
    ],
)
