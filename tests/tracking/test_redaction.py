import pytest

from mcpl.tracking.redaction import redact


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://ann:pw@host:5000/x", "https://***@host:5000/x"),
        ("see postgresql+psycopg2://ann:p@ss:w@db/m, or not", "see postgresql+psycopg2://***@db/m, or not"),
        ("s3://bucket/a?X-Amz-Signature=abc&x=1", "s3://bucket/a?X-Amz-Signature=***&x=1"),
        ("http://h/?token=abc&password=d%40e", "http://h/?token=***&password=***"),
        ("a='https://t:ok@h/p', b=https://h/p@v1", "a='https://***@h/p', b=https://h/p@v1"),
        ("/plain/path, mail me@home and a <bear>", "/plain/path, mail me@home and a <bear>"),
    ],
)
def test_secrets_are_hidden_and_nothing_else(text, shown):
    assert redact(text) == shown
    assert redact(shown) == shown
