"""What a picture says about itself: A1111's parameters text, the IPTC mark, and the JSON receipt.

Prompts come from strangers. Whatever they hold, these texts stay well-formed in the container that they
go into, and none of it can pass for another field. The receipt alone is exact.
"""

import json
import re
import struct
from typing import Final, cast
from xml.etree import ElementTree
from xml.sax.saxutils import escape

from PIL import ExifTags
from pydantic import ValidationError

from darkroom.types import Receipt, SchedulerName

TRAINED_ALGORITHMIC_MEDIA = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
IPTC_NAMESPACE = "http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
DARKROOM_NAMESPACE = "urn:darkroom:1/"
MAX_XMP_CHARACTERS = 1 << 20

A1111_SAMPLERS: Final[dict[SchedulerName, tuple[str, str]]] = {
    "euler": ("Euler", "Automatic"),
    "euler_karras": ("Euler", "Karras"),
    "euler_ancestral": ("Euler a", "Automatic"),
    "dpmpp_2m": ("DPM++ 2M", "Uniform"),
    "dpmpp_2m_karras": ("DPM++ 2M", "Karras"),
    "dpmpp_2m_sde": ("DPM++ 2M SDE", "Uniform"),
    "dpmpp_2m_sde_karras": ("DPM++ 2M SDE", "Karras"),
    "deis": ("DEIS", "Automatic"),
    "ddim": ("DDIM", "Automatic"),
    "ddpm": ("DDPM", "Automatic"),
    "unipc": ("UniPC", "Automatic"),
    "lcm": ("LCM", "Automatic"),
}
"""(Sampler, Schedule type) as A1111 1.9 and Forge spell them; DEIS, which they lack, as SD.Next does.
`Automatic` is Karras for their DPM++ samplers, hence `Uniform` for those that are not."""

# Civitai and others split at these labels wherever they stand, A1111 only at the start of a line.
_RESERVED_LABEL = re.compile(r"(Negative prompt|Steps):")
_CONTROL_CHARACTER = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
_NONCHARACTER = re.compile("[\ufffe\uffff]")


def parameters_text(receipt: Receipt) -> str:
    """The text that A1111, Forge and Civitai read: prompt, negative prompt, and one line of settings.

    A reading aid, not the record: prompts keep this service's weighting syntax, control characters become
    spaces, and a label that readers search for gets a space before its colon. `None` and `""` for a
    negative prompt look alike. The form is that of A1111's `create_infotext` and
    `parse_generation_parameters`.
    """
    # A receipt of a newer service may name a scheduler that this one does not know.
    sampler, schedule = A1111_SAMPLERS.get(
        cast(SchedulerName, receipt.scheduler), (receipt.scheduler, "Automatic")
    )
    settings: dict[str, str | int] = {
        "Steps": receipt.num_inference_steps,
        "Sampler": sampler,
        "Schedule type": schedule,
        "CFG scale": _plain(receipt.guidance_scale),
        "Seed": receipt.seed,
        "Size": f"{receipt.width}x{receipt.height}",
        "Model": receipt.model,
    }
    if receipt.refiner:
        settings["Refiner"] = f"{receipt.model} refiner"
        settings["Refiner switch at"] = _plain(receipt.refiner.denoising_end)
    hashes = ", ".join(f"{lora.ref.partition('@')[0]}: {lora.auto_v3}" for lora in receipt.loras)
    if hashes:
        settings["Lora hashes"] = hashes
    lines = [_safe_prompt(receipt.prompt)]
    if receipt.negative_prompt:
        lines.append(f"Negative prompt: {_safe_prompt(receipt.negative_prompt)}")
    lines.append(", ".join(f"{label}: {_quoted(value)}" for label, value in settings.items()))
    return "\n".join(lines)


def canonical_json(receipt: Receipt) -> str:
    """The receipt as JSON with sorted keys and no whitespace: equal receipts give equal text."""
    fields = receipt.model_dump(mode="json")
    return json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def receipt_from_json(text: str) -> Receipt | None:
    """The receipt that `canonical_json` wrote, or None if the text is anything else."""
    try:
        return Receipt.model_validate_json(text)
    except ValidationError:
        return None


def xmp_packet(receipt_json: str | None = None) -> str:
    """An XMP packet that marks generated media as IPTC asks for, and may carry the receipt."""
    receipt = f"<darkroom:receipt>{_xml_text(receipt_json)}</darkroom:receipt>" if receipt_json else ""
    return (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
        '<x:xmpmeta xmlns:x="adobe:ns:meta/">'
        '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        f'<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="{IPTC_NAMESPACE}"'
        f' xmlns:darkroom="{DARKROOM_NAMESPACE}">'
        f"<Iptc4xmpExt:DigitalSourceType>{TRAINED_ALGORITHMIC_MEDIA}</Iptc4xmpExt:DigitalSourceType>"
        f"{receipt}</rdf:Description></rdf:RDF></x:xmpmeta>"
        '<?xpacket end="r"?>'
    )


def receipt_from_xmp(packet: bytes) -> Receipt | None:
    """The receipt inside an XMP packet, or None. Packets may come from strangers: no DTD is read."""
    text = packet.decode("utf-8", errors="replace")
    if len(text) > MAX_XMP_CHARACTERS or "<!DOCTYPE" in text:
        return None
    try:
        receipt = ElementTree.fromstring(text).findtext(f".//{{{DARKROOM_NAMESPACE}}}receipt")
    except (ElementTree.ParseError, ValueError):
        return None
    return receipt_from_json(receipt) if receipt else None


def exif_block(parameters: str) -> bytes:
    """EXIF whose UserComment holds the parameters text, which is where A1111 looks in JPEG and WebP.

    Written by hand because Pillow gives UserComment the type BYTE, and piexif, through which A1111 reads,
    takes only UNDEFINED. Big-endian UTF-16, as piexif assumes; the file is big-endian for readers that ask.
    """
    comment = b"UNICODE\0" + parameters.encode("utf-16-be")
    long, undefined = 4, 7
    exif_ifd_at, comment_at = 26, 44  # after the header (8 bytes) and one or two IFDs of one entry (18 each)
    return b"".join(
        (
            b"Exif\0\0",
            struct.pack(">2sHI", b"MM", 42, 8),
            struct.pack(">HHHIII", 1, ExifTags.IFD.Exif, long, 1, exif_ifd_at, 0),
            struct.pack(">HHHIII", 1, ExifTags.Base.UserComment, undefined, len(comment), comment_at, 0),
            comment,
        )
    )


def _safe_prompt(prompt: str) -> str:
    one_kind_of_newline = prompt.replace("\r\n", "\n").replace("\r", "\n")
    printable = _CONTROL_CHARACTER.sub(" ", one_kind_of_newline)
    return _RESERVED_LABEL.sub(r"\1 :", printable)


def _quoted(value: str | int) -> str:
    """A1111's rule: a value that could be taken for two, or for another label, is written as JSON."""
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if re.search(r'[,:"\x00-\x1f]', text) else text


def _plain(number: float) -> str:
    return str(number).removesuffix(".0")


def _xml_text(receipt_json: str) -> str:
    """JSON as XML text. JSON escapes control characters; the two others that XML 1.0 forbids get one too."""
    return escape(_NONCHARACTER.sub(lambda found: f"\\u{ord(found[0]):04x}", receipt_json))
