"""What is optimised and measured."""

from ssmlab.tasks.next_token import NextToken
