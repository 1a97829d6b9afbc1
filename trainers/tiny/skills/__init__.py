"""What an assistant of the small world can be asked, one module a skill.

A skill knows its contents (the hidden facts of every possible prompt), how people ask for them, how good and
bad answers to them are made, and how right any text is as an answer. No text is compared with stored answers.
"""

from collections.abc import Mapping

from trainers.tiny.skills import counting, facts, lists, requests, sentences, small_talk
from trainers.tiny.skills.base import Facts, Message, Skill

SKILLS: Mapping[str, Skill] = {
    skill.name: skill
    for skill in (
        facts.FactSkill(),
        counting.CountingSkill(),
        lists.ListSkill(),
        sentences.SentenceSkill(),
        small_talk.SmallTalkSkill(),
        requests.HowToSkill(),
        requests.DeclineSkill(),
    )
}

__all__ = ["SKILLS", "Facts", "Message", "Skill"]
