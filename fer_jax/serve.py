"""The command `fer-jax serve`: a page in the browser that shows which expressions faces have."""

import io
import threading
import webbrowser

from PIL import Image

from fer_jax.errors import UserError
from fer_jax.faces import pictures
from fer_jax.faces.classifier import Classifier
from fer_jax.faces.server import Server
from fer_jax.inference import explanation
from fer_jax.system import collector
from fer_jax.system.terminal import Terminal


def make_predict(classifier: Classifier):
    """Returns the function that `Server` calls: (picture in bytes, explain method or None, faces) -> faces found."""

    def predict(picture: bytes, explain: str | None, faces: str) -> list[dict]:
        if explain is not None:
            explanation.check(explain)
        # `pictures.read` returns the first frame of an animated picture.
        return classifier(pictures.read(picture), faces=faces, explain=explain)

    return predict


def serve(*, weights: str | None, checkpoint: str | None, detector: str, host: str, port: int, opens: bool) -> None:
    """Serves the page and POST /predict (see `faces.server`) until the process is ended.

    Args:
      weights, checkpoint, detector: the arguments of `Classifier`.
      host, port: the address to listen at; port 0 takes a free port.
      opens: whether the page is opened in the user's browser.

    Raises UserError if the network can't be loaded or the port is taken.
    """
    terminal = Terminal(is_primary=True)
    classifier = Classifier(weights, checkpoint, detector=detector)
    # Compiles the programs that the first picture with a face needs, so that nobody waits for them in the browser.
    predict = make_predict(classifier)
    blank = io.BytesIO()
    Image.new("RGB", (64, 64)).save(blank, "png")
    for faces in ("none", "all"):
        predict(blank.getvalue(), None, faces)
    collector.resume()
    try:
        server = Server((host, port), predict, classifier.class_names)
    except (OSError, OverflowError) as error:
        raise UserError(f"--host={host} --port={port} can't be used: {error}; --port=0 takes a free port") from None
    with server:
        terminal.say(f"{server.url} shows the page; Ctrl-C ends it.")
        if host not in ("127.0.0.1", "localhost", "::1"):
            terminal.warn(
                f"{host} is open to the network, and browsers give a webcam to https and localhost only; from another "
                f"machine, ssh -L {server.server_address[1]}:localhost:{server.server_address[1]} is the safer way"
            )
        if opens:
            # In a thread, because a text browser would wait for the page, and this for the browser.
            threading.Thread(target=webbrowser.open, args=[server.url], daemon=True).start()
        server.serve_forever()
