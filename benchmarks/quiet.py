"""Libraries that print progress bars and notices of their own, silenced for a readable run."""

import logging
import warnings

import structlog
import transformers


def quiet() -> None:
    """Leave only errors of diffusers and transformers and warnings of our own."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    import diffusers  # after: importing it already has transformers say something

    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
