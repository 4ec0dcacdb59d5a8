"""What a template's note says of commands, and of files that have to be trained first."""


def command(line: str) -> str:
    return f"\n\n```\n{line}\n```\n\n"


def trained(line: str, file: str, english: str, chinese: str) -> tuple[str, str]:
    return (
        f"**Train first**, with this pack's trainer:{command(line)}then copy **{file}** to models/loras. {english}",
        f"**先训练**，使用本包的训练器：{command(line)}然后把 **{file}** 复制到 models/loras。{chinese}",
    )
