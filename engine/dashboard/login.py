"""Signing in to the dashboard: name and password and, of those who have one, a one-time code (TOTP, RFC 6238)."""

from typing import TYPE_CHECKING, Any

from django import forms
from django.conf import settings
from django.contrib.admin.forms import AdminAuthenticationForm
from django.core.exceptions import ValidationError
from django_otp import match_token, user_has_device

if TYPE_CHECKING:
    UnfoldForm = AdminAuthenticationForm
else:  # unfold ships no types
    from unfold.forms import AuthenticationForm as UnfoldForm


class LoginForm(UnfoldForm):
    """The form of the login. A wrong code is refused in the words of a wrong password."""

    otp_token = forms.CharField(
        label="One-time code",
        required=False,
        max_length=10,
        help_text="From your authenticator, if you have set one up.",
        widget=forms.TextInput({"autocomplete": "one-time-code", "inputmode": "numeric"}),
    )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if settings.ENGINE_TOTP == "off":
            del self.fields["otp_token"]
        else:
            given = self.fields["username"].widget.attrs.get("class", "")
            self.fields["otp_token"].widget.attrs["class"] = given

    def confirm_login_allowed(self, user: Any) -> None:
        """Raise ValidationError unless this person may sign in with this code."""
        super().confirm_login_allowed(user)
        if settings.ENGINE_TOTP == "off":
            return
        if user_has_device(user):
            if match_token(user, self.cleaned_data.get("otp_token", "").replace(" ", "")) is None:
                raise self.get_invalid_login_error()
        elif settings.ENGINE_TOTP == "required":
            raise ValidationError(
                "A one-time code is needed here. Ask whoever runs Engine to set one up: manage.py totp NAME",
                code="no_device",
            )
