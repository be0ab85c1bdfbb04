"""locales/ against the schemas; tests/nodes/locales.py says what to do when this fails."""

from locales import TRANSLATIONS, english, read, schema_texts


def check_english_is_the_schemas(pack):
    assert read("en") == english(schema_texts(pack))


def check_every_text_is_translated(pack):
    """Also those that en leaves to the schemas."""
    texts = schema_texts(pack)
    for language in TRANSLATIONS:
        assert read(language).keys() == texts.keys(), language
