"""The paper's metrics on a folder of generated pictures, by networks that the user has."""
