"""The page of ``fd3d inspect --html``, and a store in words and as a picture."""
