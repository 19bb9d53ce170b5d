"""What scripts of tests check a refusal with."""

REFUSED = """
def refused(call, kind, *words):
    try:
        call()
    except kind as error:
        assert all(word in str(error) for word in words), str(error)
    else:
        raise AssertionError("nothing was raised")
"""
