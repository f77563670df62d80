"""Somebody who has a page open, without a browser: speaks Streamlit's protocol, and asks again as a page does."""

import json
import threading
import time
from contextlib import suppress
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from streamlit.proto.BackMsg_pb2 import BackMsg
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect


class Viewer:
    """A page that stays open until it is closed, or its server ends; `received` counts bytes, `messages` messages of
    the page and frames of its feed."""

    def __init__(self, address: str, query: str = "", opening: float = 60) -> None:
        """`address`: of the app; `query`: what stands behind the question mark.  Raises OSError where none answers."""
        self.address, self.query, self.received, self.messages = address, query, 0, 0
        self._feed = ""
        where = address.replace("http", "ws", 1) + "/_stcore/stream"
        self._socket: ClientConnection = connect(
            where, subprotocols=["streamlit"], origin=address, max_size=None, open_timeout=opening
        )
        self._again = dict[str, tuple[float, float]]()
        """When each part of the page is due again, and its pace in seconds."""
        self._threads = [threading.Thread(target=does, daemon=True) for does in (self._watch, self._follow)]
        self._open = True
        self._ask()
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Close the page."""
        self._open = False
        self._socket.close()
        for thread in self._threads:
            thread.join()

    def __enter__(self) -> "Viewer":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, fragment: str = "") -> None:
        asked = BackMsg()
        asked.rerun_script.query_string = self.query
        if fragment:
            asked.rerun_script.fragment_id = fragment
            asked.rerun_script.is_auto_rerun = True
        self._socket.send(asked.SerializeToString())

    def _follow(self) -> None:
        """Take frame after frame of the feed that the page has, as its component does."""
        feed = had = ""
        while self._open:
            if self._feed != feed:
                feed, had = self._feed, ""
            if not feed:
                time.sleep(0.05)
                continue
            try:
                with urlopen(Request(f"{self.address}/{feed}", headers={"If-None-Match": had}), timeout=30) as answer:
                    if answer.status == 204:
                        # Nothing more comes of it.
                        self._feed = ""
                        continue
                    had = answer.headers["ETag"]
                    self.received += len(answer.read())
                    self.messages += 1
            except HTTPError as e:
                if e.code != 304:
                    time.sleep(0.2)
            except OSError:
                return

    def _watch(self) -> None:
        with suppress(ConnectionClosed, OSError):
            while True:
                due = min((at for at, _ in self._again.values()), default=time.monotonic() + 1)
                with suppress(TimeoutError):
                    self._take(self._socket.recv(timeout=max(0, due - time.monotonic())))
                for fragment, (at, pace) in list(self._again.items()):
                    if at <= time.monotonic():
                        self._again[fragment] = time.monotonic() + pace, pace
                        self._ask(fragment)

    def _take(self, data: str | bytes) -> None:
        assert isinstance(data, bytes)
        self.received += len(data)
        self.messages += 1
        message = ForwardMsg.FromString(data)
        kind = message.WhichOneof("type")
        if kind == "auto_rerun":
            again = message.auto_rerun
            if self._again.get(again.fragment_id, (0, 0))[1] != again.interval:
                self._again[again.fragment_id] = time.monotonic() + again.interval, again.interval
        elif kind == "new_session" and not message.metadata.run.fragment_ids:
            # The whole page runs, and says anew what is drawn again.
            self._again.clear()
        elif kind == "stop_auto_rerun":
            for fragment in message.stop_auto_rerun.fragment_ids:
                self._again.pop(fragment, None)
        elif kind == "delta" and '"feed"' in (data := message.delta.new_element.bidi_component.json):
            self._feed = json.loads(data)["feed"]
        elif kind == "page_info_changed":
            self.query = message.page_info_changed.query_string
