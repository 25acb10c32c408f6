"""Package metadata of mailroute; the tools' settings are in pyproject.toml."""

from pathlib import Path

from setuptools import find_packages, setup

METRICS = ["prometheus-client>=0.22"]
OAUTH2 = ["PyJWT>=2.11"]

setup(
    name="mailroute",
    version="0.1.0",
    description="A mail routing proxy: one name and one port in front of many mail servers",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.11",
    # twisted/plugins must not have an __init__.py: it is a plugin folder, which
    # Twisted's own package extends to every entry of sys.path.
    packages=[*find_packages(include=["mailroute", "mailroute.*"]), "twisted.plugins"],
    package_data={"mailroute": ["py.typed"]},
    install_requires=[
        "attrs>=23.2",
        "cryptography>=45",
        "pydantic>=2.10",
        "pyOpenSSL>=25.2",
        "service-identity>=24.1",
        "Twisted>=26.4",
        "zope.interface>=6.2",
    ],
    extras_require={
        "ldap": ["sansldap>=0.1"],
        "mariadb": ["PyMySQL>=1.1.1"],
        "metrics": METRICS,
        "oauth2": OAUTH2,
        "postgresql": ["psycopg[binary]>=3.2"],
        "test": [
            *METRICS,
            *OAUTH2,
            "aiosmtpd>=1.4.5",
            "coverage[toml]>=7.5",
            "hypothesis>=6.100",
            "imapclient>=3.0",
            "jsonschema>=4.20",
            "mypy>=1.11",
            "mypy-zope>=1.0.6",
            "psycopg[binary]>=3.2",
            "PyMySQL>=1.1.1",
            "pytest>=8.2",
            "pytest-twisted>=1.14.3",
            "pytest-xdist>=3.6",
            "ruff>=0.15",
            "sansldap>=0.1",
            "towncrier>=24.8",
            "types-PyMySQL>=1.1",
            "types-setuptools>=75",
        ],
    },
    entry_points={"console_scripts": ["mailroute=mailroute.cli:main"]},
    classifiers=[
        "Development Status :: 4 - Beta",
        "Framework :: Twisted",
        "License :: OSI Approved :: MIT License",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Communications :: Email",
    ],
)
